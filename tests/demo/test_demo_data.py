"""The demo's documents and questions, from the installed Airflow and Python."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from jora_tasks.demo import demo_spec, write_demo
from jora_tasks.demo.documents import FACTS, airflow_sections, section_document
from jora_tasks.demo.questions import PHRASINGS
from jora_tasks.digests import digest_folder
from retrieval.chunking import sections
from retrieval.evidence import resolve
from retrieval.questions import read_questions
from tests.retrieval.collecting import read


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, write_demo(folder)


@pytest.fixture(scope="module")
def questions(demo):
    return read_questions(demo[0] / "questions.jsonl")


@pytest.fixture(scope="module")
def documents(demo):
    return read(demo[0] / "documents").by_id


def test_enough_questions_and_documents(demo, questions, documents):
    counts = demo[1]
    assert counts["test"] >= 72
    assert counts["dev"] >= 24
    assert counts["train"] >= 144
    assert counts["documents"] == len(documents)
    assert counts["options"] >= 300
    assert Counter(question.split for question in questions) == {
        split: counts[split] for split in ("train", "dev", "test")
    }
    assert any(id_.startswith("python/") for id_ in documents)


def test_kinds_of_facts_are_balanced_and_have_several_phrasings(questions):
    for split in ("train", "dev", "test"):
        kinds = Counter(q.id.rsplit(".", 1)[1] for q in questions if q.split == split)
        assert set(kinds) == set(FACTS)
        assert max(kinds.values()) - min(kinds.values()) <= 2
    for phrasings in PHRASINGS.values():
        assert len(set(phrasings)) >= 3


def test_no_option_is_in_two_splits_and_no_question_is_asked_twice(questions):
    splits = {}
    for question in questions:
        assert question.group == question.id.rsplit(".", 1)[0]
        splits.setdefault(question.group, set()).add(question.split)
    assert all(len(each) == 1 for each in splits.values())
    assert len({question.question for question in questions}) == len(questions)


def test_evidence_states_the_answer_under_the_option_and_in_one_section_of_its_document(questions, documents):
    texts = {id_: document.text for id_, document in documents.items()}
    for question in questions:
        (evidence,) = question.evidence
        span = resolve(evidence, texts)
        assert span is not None
        assert texts[span.document_id][span.start : span.end].endswith(f": {question.answers[0]}")
        (path,) = [
            path
            for start, end, path in sections(documents[span.document_id])
            if start <= span.start and span.end <= end
        ]
        section, option = question.group.rsplit(".", 1)
        assert path == f"Airflow configuration: {section} › {option}"
        assert option in question.question


def test_each_option_is_one_section_of_its_document(documents):
    for section in airflow_sections():
        paths = [path for _, _, path in sections(documents[f"airflow/{section.name}.md"])]
        for option in section.options:
            assert paths.count(f"Airflow configuration: {section.name} › {option.name}") == 1


def test_facts_are_those_of_airflow(questions, tmp_path):
    # in a child process, since Airflow writes its configuration where it is imported first
    code = """
import json
from airflow.configuration import conf
print("RESULT" + json.dumps({
    section: {
        name: {"environment": conf._env_var_name(section, name), "section": section, **option}
        for name, option in described["options"].items()
    }
    for section, described in conf.configuration_description.items()
}))
"""
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    ).stdout
    described = json.loads(output.partition("RESULT")[2])
    field = {"version": "version_added"}
    for question in questions:
        section, name = question.group.rsplit(".", 1)
        kind = question.id.rsplit(".", 1)[1]
        assert str(described[section][name][field.get(kind, kind)]) == question.answers[0]
    ours = {(s.name, o.name) for s in airflow_sections() for o in s.options}
    # Airflow also knows options of providers that are not installed
    assert ours <= {(section, name) for section, options in described.items() for name in options}


def test_answers_are_short_single_line_and_no_secrets(questions):
    for question in questions:
        (answer,) = question.answers
        assert 0 < len(answer) <= 48
        assert re.search(r"\w", answer)
        assert "\n" not in answer
        if question.id.endswith(".default"):
            assert not re.search("password|secret|fernet", question.group)
            assert "{" not in answer


def test_section_questions_only_for_names_that_occur_once(questions):
    names = Counter(option.name for section in airflow_sections() for option in section.options)
    for question in questions:
        section, name = question.group.rsplit(".", 1)
        if question.id.endswith(".section"):
            assert names[name] == 1
        else:
            assert section in question.question


def test_writing_again_gives_the_same_bytes(demo, tmp_path):
    write_demo(tmp_path)
    assert digest_folder(tmp_path) == digest_folder(demo[0])
    write_demo(tmp_path)
    assert digest_folder(tmp_path) == digest_folder(demo[0])


def test_airflow_is_not_imported():
    code = (
        "import sys, jora_tasks.demo as d; d.airflow_sections()\n"
        "assert 'airflow' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_spec_points_at_the_files(demo):
    spec = demo_spec(demo[0])
    assert spec.name == "demo"
    assert len(json.loads(spec.model_dump_json())) == len(type(spec).model_fields)
    assert spec.questions.path == str(demo[0] / "questions.jsonl")
    assert spec.documents.path == str(demo[0] / "documents")


def test_a_description_line_like_a_heading_is_no_heading():
    from jora_tasks.demo.documents import Section, _option

    option = _option("core", "x", {"description": "Say:\n\n# not a heading\n\nend", "default": "5"})
    document = section_document(Section("core", "", (option,)))
    from retrieval.documents import Document

    loaded = Document(document.path, document.path, "Airflow configuration: core", document.text)
    assert len(sections(loaded)) == 1
    start, end = document.lines["x", "default"]
    assert document.text[start:end] == "- Default: 5"
