"""A fixed-seed part of the verbs that are killed and done again; all of them by command (docs/faults.md)."""

from tools.drills import verbs


def test_what_is_killed_the_first_time_that_it_is_done_is_done_again_by_the_same_command():
    report = verbs.run(3, 2, ("generate", "init"), told=lambda _: None)
    assert report.total == 3, report
    assert "done again by the same command" in verbs.summary(report)
