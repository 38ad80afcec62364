from retrieval.loaders.html import html_text

PAGE = """<html><head><title> A  page </title><style>b{}</style></head><body>
<header>Site banner</header><nav>Home</nav>
<main><header><h1>Limits <b>now</b></h1></header>
<p>Five <em>requests</em>, no
more.<br>Really.</p>
<ul><li>One</li><li>Two</li></ul>
<pre>def f():
    return 1</pre>
<table><tr><td>a</td><td>b</td></tr></table>
<script>alert(1)</script></main><footer>Legal</footer></body></html>"""


def test_main_text_with_headings_and_without_the_rest():
    title, text = html_text(PAGE)
    assert title == "A page"
    assert text == (
        "# Limits now\n\nFive requests, no more.\nReally.\n\n- One\n\n- Two\n\n"
        "def f():\n    return 1\n\na b\n"
    )


def test_page_without_main_part_and_empty_page():
    assert html_text("<p>one</p><p>two</p>") == ("", "one\n\ntwo\n")
    assert html_text("")[1].strip() == ""


def test_deeply_nested_pages_are_read():
    assert html_text("<div>" * 3000 + "deep") == ("", "deep\n")
    assert html_text("<h2>" + "<b>" * 3000 + "deep")[1] == "## deep\n"
