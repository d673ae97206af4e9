"""What long runs tell, and what a command that fails has said."""

import sys

import pytest

from dfdc_lib.progress import NotEnough, run_command, text_progress


def test_ten_lines_whatever_the_length(capsys):
    show = text_progress("steps")
    for done in range(0, 1001):
        show(done, 1000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "steps 0/1000"
    assert lines[-1] == "steps 1000/1000"
    assert len(lines) == 11


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("print('half way'); exit('disk full')", RuntimeError, "half way\ndisk full"),
        ("raise KeyError('fold')", RuntimeError, "KeyError: 'fold'"),
        ("from dfdc_lib.progress import require; require(0, 'one')", NotEnough, "^one$"),
    ],
)
def test_a_command_that_fails_is_told_with_what_it_said(code, error, said):
    run_command([sys.executable, "-c", "print('quiet')"])
    with pytest.raises(error, match=said):
        run_command([sys.executable, "-c", code])
