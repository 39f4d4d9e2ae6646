"""docs/limits.md tells those who have to decide what the default model gets wrong: with the figures of its card."""

import re
from pathlib import Path

from mien.classifier import DEFAULT_MODEL, MODELS

DOCS = Path(__file__).parents[1] / "docs"


def test_figures_are_those_of_the_model_card():
    page, card = (DOCS / "limits.md").read_text(), (MODELS / DEFAULT_MODEL / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| [\d,]+ \| ([\d.]+) \| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \|$", card, re.MULTILINE)
    assert len(rows) == 8
    for label, precision, *recall in rows:
        told = re.search(rf"^\| {label} \| (\d+) \((\d+) to (\d+)\) \| (\d+) \|$", page, re.MULTILINE)
        assert told, label
        for ours, theirs in zip(told.groups(), [*recall, precision], strict=True):
            assert abs(int(ours) - 100 * float(theirs)) <= 0.5 + 1e-9, label
    page = " ".join(page.split())  # lines may break anywhere
    accuracy = re.search(r"accuracy \(95 % interval\) \| ([\d.]+ \([\d.]+ to [\d.]+\))", card).group(1)
    assert f"**Accuracy** {accuracy.replace('(', '(95 % ')}" in page
    for pattern, changed in [
        ("JPEG, quality 30", r"quality 30 gets another label in (\d+)"),
        ("JPEG, quality 10", r"at quality 10 in (\d+)"),
        ("box scaled 0.8", r"tighter in (\d+)"),
        ("rotated 15°", r"turned by 15° in (\d+)"),
    ]:
        same = re.search(rf"^\| {re.escape(pattern)} \| [\d.]+ \| ([\d.]+) \|", card, re.MULTILINE).group(1)
        assert int(re.search(changed, page).group(1)) == round(100 * (1 - float(same)))


def test_links_lead_somewhere():
    for page in ("limits.md", "many_machines.md"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", (DOCS / page).read_text()):
            assert (DOCS / target).exists(), f"{page}: {target}"
