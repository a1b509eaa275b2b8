"""A fixed-seed part of the random histories; the thousands are run by command (docs/faults.md)."""

from tools.drills import histories


def test_histories_of_a_home_with_kills_hold_what_a_set_of_rows_says(capsys):
    report = histories.run(histories=1, kills=2, seed=13, length=4, told=lambda _: None)
    assert report.histories == 1 and report.events_checked > 20 and report.lookups_checked >= 7
    assert sum(report.kills.values()) == 2 and "nobody back" in histories.summary(report)
