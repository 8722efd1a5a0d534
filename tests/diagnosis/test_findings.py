from typing import Any

from jaxpretrain.diagnosis.findings import Finding, worst


def finding(name: str, severity: Any = "info", **changes: Any) -> Finding:
    return Finding(name, 1, 3, "It is bad.", "Nothing.", {}, severity, **changes)


def test_a_title_is_the_name_in_words_with_its_subject():
    assert finding("warmup_ended").title == "Warm-up ended"
    assert finding("overfitting", subject="sotu").title == "Overfitting (sotu)"


def test_a_finding_is_the_same_where_name_and_subject_are():
    first = finding("overfitting", subject="sotu")
    assert first.key == finding("overfitting", "warning", subject="sotu", is_over=True).key
    assert first.key != finding("overfitting", subject="other").key


def test_the_worst_severity_is_that_of_what_still_holds():
    info, warning = finding("spike"), finding("plateau", "warning")
    over = finding("divergence", "error", is_over=True)
    assert worst([]) is None and worst([over]) is None
    assert worst([info, over]) == "info"
    assert worst([warning, info, over]) == "warning"
