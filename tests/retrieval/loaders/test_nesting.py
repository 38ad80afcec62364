import pytest
from hypothesis import given
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from retrieval.loaders.nesting import nests_deeper
from tests.retrieval.collecting import put, read

NAMES = st.sampled_from(["div", "section", "ul", "article"])


def markup(tree):
    name, children = tree
    return f"<{name} class='a'>{''.join(map(markup, children))}</{name.upper()}>"


@given(st.recursive(st.tuples(NAMES, st.just([])), lambda each: st.tuples(NAMES, st.lists(each, max_size=3))))
def test_depth_is_the_parsers(tree):
    def depth(node):
        return 1 + max((depth(child) for child in node.iter()), default=0)

    page = markup(tree)
    deep = depth(LexborHTMLParser(page).css_first("body")) - 1  # body itself is not written
    assert nests_deeper(page, deep - 1) and not nests_deeper(page, deep)


@pytest.mark.parametrize(
    "piece",
    [
        "<p>one<br>",
        "<li>one",
        "<tr><td>one",
        "<!-- <div> -->",
        "<script>'<div>'</script>",
        "<div><span></div>",
        "<b><i></b></i>",
        "</div>",
        '<a title="<div <div <div"></a>',
        "<svg><path d='M0'/><use/></svg>",
        "<svg/>",
        "1 < 2",
    ],
)
def test_long_flat_pages_are_not_deep(piece):
    assert not nests_deeper(f"<main>{piece * 5000}</main>", 4)


def test_a_map_of_many_paths_is_not_deep():
    assert not nests_deeper("<svg>" + "<path d='M0'/>" * 5000 + "</svg>", 1)


@pytest.mark.parametrize("piece", ["<div", "<!--", "<script>", "<a '", "<", "</div>", "<svg/>"])
def test_unfinished_tags_are_passed_in_time(piece):
    nests_deeper(piece * 400_000, 500_000)


def test_a_page_that_would_stall_the_parser_is_left_out_with_its_reason(tmp_path):
    put(tmp_path, "deep.html", "<div>" * 200_000 + "deep" + "</div>" * 200_000)
    put(tmp_path, "page.html", "<div>" * 3000 + "read" + "</div>" * 3000)
    found = read(tmp_path)
    assert [each.text for each in found.documents] == ["read\n"]
    assert found.reasons == [
        "deep.html has over 4,000 elements within each other, as no page needs; close its tags, or save it "
        "as text."
    ]
