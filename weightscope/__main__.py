"""``python -m weightscope``, and the command: the door, there before anything is loaded."""

import sys


def main() -> None:
    """Run the command line; an interruption while it loads is no failure to explain."""
    try:
        from weightscope.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
