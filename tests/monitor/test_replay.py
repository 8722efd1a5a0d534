from jaxpretrain.monitor.replay import findings_over_time


def test_what_has_passed_is_told_as_past(recorded):
    history, plan = recorded("healthy_triangular")
    (finding,) = findings_over_time(history, plan)
    assert (finding.name, finding.first, finding.is_over) == ("warmup_ended", 40, True)


def test_what_holds_is_told_once(recorded):
    history, plan = recorded("clipping")
    findings = findings_over_time(history, plan)
    assert [f.name for f in findings if not f.is_over] == ["always_clipping"]
    assert len({f.key for f in findings}) == len(findings)
