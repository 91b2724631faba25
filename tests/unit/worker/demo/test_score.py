"""The score: what counts as right, and that nothing here needs torch."""

import subprocess
import sys

from worker.demo.score import HELD_OUT, PRACTICE, Question, questions, score, score_tools, tool_questions, tools


def test_an_answer_is_right_when_it_holds_all_that_is_expected() -> None:
    question = Question("api", "Which API?", ("OpenAI", "Anthropic"))
    assert question.is_right("It speaks openai and ANTHROPIC.")
    assert not question.is_right("It speaks OpenAI.")


def test_score_counts_by_fact() -> None:
    result = score(lambda question: "Paris" if "France" in question or "French" in question else "I do not know")
    assert result.by_fact()["capital-france"] == (4, 4)
    assert result.by_fact()["port"] == (0, 4)
    assert result.num_right == 4
    assert len(result.wrong) == len(questions()) - 4
    assert 0 < result.share < 0.1


def test_score_tools_wants_the_one_expected_call() -> None:
    expected = {case.text: [(case.tool, case.arguments)] for case in tool_questions()}
    assert score_tools(lambda question, offered: expected[question]).share == 1.0
    assert score_tools(lambda question, offered: expected[question] * 2).share == 0.0
    assert score_tools(lambda question, offered: []).share == 0.0


def test_the_tools_offered_are_those_of_the_questions() -> None:
    names = {tool["function"]["name"] for tool in tools()}
    assert names == {case.tool for path in (HELD_OUT, PRACTICE) for case in tool_questions(path)}


def test_nothing_but_the_trainer_imports_torch() -> None:
    imports = "import sys, worker.demo.score, worker.demo.lessons, worker.demo.tokenizer; "
    code = imports + "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
