import io
from typing import Any

import pytest
import yaml
from report_facts import example_facts, model_card, summary_table
from rich.console import Console


def printed(facts: dict[str, Any]) -> list[list[str]]:
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(summary_table(facts))
    assert "\x1b" not in out.getvalue()
    lines = [line for line in out.getvalue().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_the_table_prints_the_facts() -> None:
    assert printed(example_facts()) == [
        ["accuracy", "0.9106", "0.9014"],
        ["f1", "0.9131", "0.9042"],
        ["target sparsity", "", "0.8000"],
        ["sparsity of the targets", "0.0001", "0.8000"],
        ["sparsity of all weights", "0.0002", "0.3741"],
        ["size on disk (MB)", "90.9", "81.9"],
        ["training time", "5 min 12 s (from cache)", "2 h 05 min"],
        ["baseline: majority class (accuracy)", "0.5092", "0.5092"],
    ]
    assert str(summary_table(example_facts()).title) == "sst2 · org/tiny"


def test_what_is_missing_says_so() -> None:
    assert printed({"prunus": "0"}) == [
        [name, "not measured", "not measured"]
        for name in ("sparsity of the targets", "sparsity of all weights", "size on disk (MB)", "training time")
    ]


def test_names_are_no_markup() -> None:
    facts = example_facts()
    facts["sparse"]["metrics"] = {"[red]x[/red]": 0.5, "[/]": 0.25, "a\x1b[2Jb": 1.0}
    assert [row[0] for row in printed(facts)[2:5]] == ["[red]x[/red]", "[/]", "a\ufffd[2Jb"]


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    found = yaml.safe_load(front)
    assert isinstance(found, dict)
    return found


def test_the_front_matter() -> None:
    assert front_matter(model_card(example_facts())) == {
        "library_name": "transformers",
        "tags": ["prunus", "sparse", "pruning"],
        "base_model": "org/tiny",
        "pipeline_tag": "text-classification",
    }


@pytest.mark.parametrize("name", ["/srv/models/x", "./x", "a/b/c", "x: y\n- z", "", "a b", "../x"])
def test_a_name_that_is_no_model_of_the_hub_is_no_base_model(name: str) -> None:
    facts = example_facts()
    facts["model"]["base_model"] = name
    assert "base_model" not in front_matter(model_card(facts))


@pytest.mark.parametrize(
    ("head", "architecture", "tag", "loader"),
    [
        ("classification", "", "text-classification", "AutoModelForSequenceClassification"),
        ("regression", "", "text-classification", "AutoModelForSequenceClassification"),
        ("question-answering", "X", "question-answering", "AutoModelForQuestionAnswering"),
        ("masked-language", "X", "fill-mask", "AutoModelForMaskedLM"),
        ("", "BertForMaskedLM", None, "AutoModelForMaskedLM"),
        ("", "BertForQuestionAnswering", None, "AutoModelForQuestionAnswering"),
        ("monkey", "BertModel", None, "AutoModel"),
    ],
)
def test_how_to_load(head: str, architecture: str, tag: str | None, loader: str) -> None:
    facts = example_facts()
    facts["task"]["head"], facts["model"]["architecture"] = head, architecture
    card = model_card(facts)
    assert front_matter(card).get("pipeline_tag") == tag
    assert f"model = {loader}.from_pretrained(directory)\n" in card
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_the_card_prints_the_facts() -> None:
    card = model_card(example_facts())
    for line in (
        "| accuracy | 0.9106 | 0.9014 |",
        "| sparsity of the targets | 0.0001 | 0.8000 |",
        "| baseline: majority class (accuracy) | 0.5092 | 0.5092 |",
        "0.8000 of the weights in the 12 pruned tensors are zero, and 0.3741 of all weights.",
        "- the dense model's metrics: evaluate\\_dense is false",
        "- Warning: the loss was scaled",
    ):
        assert line in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("\n```")[0])
    assert recipe == example_facts()["recipe"]


def test_a_dense_card_claims_no_sparsity() -> None:
    facts = example_facts()
    facts.update(sparse=None, target_sparsity=None, tensors=[])
    assert front_matter(model_card(facts))["tags"] == ["prunus"]
    assert "are zero" not in model_card(facts)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<script>x</script>", r"&lt;script&gt;x&lt;/script&gt;"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("`x` *y* __z__", r"\`x\` \*y\* \_\_z\_\_"),
        ("a\n\n# b", "a # b"),
        ("# b", r"\# b"),
        ("1. b", r"1\. b"),
        ("0.5 b", "0.5 b"),
        ("https://x", r"https\://x"),
        ("&lt;", "&amp;lt;"),
        ("\\|", r"\\\|"),
    ],
)
def test_text_in_the_card_is_escaped(text: str, shown: str) -> None:
    facts = example_facts()
    facts["not_measured"] = [text]
    assert f"## Not measured\n\n- {shown}\n\n## Limits" in model_card(facts)


def test_a_fence_in_the_recipe_stays_inside() -> None:
    facts = example_facts()
    facts["recipe"] = {"note": "x\n````\n# out"}
    facts["command"] = "prunus run '```'"
    card = model_card(facts)
    assert "````sh\nprunus run '```'\n````\n" in card
    assert '`````yaml\nnote: "x\\n````\\n# out"\n`````\n' in card
