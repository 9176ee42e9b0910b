import os

import pytest

from u1_core.data.folder import Sample, read_folder, refuse_problems, split_caption
from u1_core.errors import U1Error


def put(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_pictures_of_all_kinds_and_subfolders_come_by_name(tmp_path):
    put(tmp_path, b_PNG="x", b_txt="two", a_jpeg="x", a_txt=" one \n", sub__c_webp="x", sub__c_txt="three\nlines\n")
    put(tmp_path, notes_txt="not a caption", _hidden_png="x", _git__d_png="x", readme_md="x")
    samples, problems = read_folder(tmp_path)
    assert problems == {}
    assert samples == [
        Sample("a.jpeg", tmp_path / "a.jpeg", "one"),
        Sample("b.PNG", tmp_path / "b.PNG", "two"),
        Sample("sub/c.webp", tmp_path / "sub" / "c.webp", "three\nlines"),
    ]
    assert [sample.id for sample in read_folder(tmp_path, limit=2)[0]] == ["a.jpeg", "b.PNG"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", ("a cat", None)),
        ("a cat\n---think---\n1. **Plan**\n2. paint\n", ("a cat", "1. **Plan**\n2. paint")),
        ("a cat\r\n ----- Think ---- \r\nwhy", ("a cat", "why")),
        ("a cat ---think--- in a line", ("a cat ---think--- in a line", None)),
        ("a cat\n---think---\n \n", ("a cat", None)),
        ("a cat\n---think---\none\n---think---\ntwo", ("a cat", "one\n---think---\ntwo")),
    ],
)
def test_a_think_line_splits_off_the_reasoning(text, expected):
    assert split_caption(text) == expected


def test_all_that_is_wrong_is_told_in_one_line(tmp_path):
    put(tmp_path, a_png="x", a_txt="fine", b_png="x", c_png="x", c_txt=" \n", d_png="x", d_txt=b"\xff\xfe\0", e_png="x")
    put(tmp_path, e_txt="---think---\nonly why")
    samples, problems = read_folder(tmp_path)
    assert [sample.id for sample in samples] == ["a.png"]
    problems["a.png"] = "cut off"
    with pytest.raises(U1Error) as caught:
        refuse_problems(tmp_path, problems)
    assert str(caught.value) == (
        f"{tmp_path}: cannot train on 5 pictures: a.png (cut off), b.png (has no caption b.txt), c.png (c.txt is empty)"
        ", d.png (d.txt is not UTF-8 text), e.png (e.txt is empty); mend them or move them away"
    )


def test_many_problems_are_counted_not_listed(tmp_path):
    with pytest.raises(U1Error, match=r"cannot train on 30 pictures: 00 \(bad\), .*07 \(bad\), and 22 more; mend"):
        refuse_problems(tmp_path, {f"{i:02}": "bad" for i in range(30)})
    refuse_problems(tmp_path, {})


def test_folders_that_will_not_do(tmp_path):
    with pytest.raises(U1Error, match=r"nowhere: there is no such folder; data\.data_dir is to be"):
        read_folder(tmp_path / "nowhere")
    put(tmp_path, a_txt="a caption and no picture")
    with pytest.raises(U1Error, match=r"holds no pictures \(\.jpg \.jpeg \.png"):
        read_folder(tmp_path)
    with pytest.raises(U1Error, match="is a file, not a folder"):
        read_folder(tmp_path / "a.txt")


def test_names_that_are_no_text_become_text(tmp_path):
    """A file system may take any bytes but zero and slash for a name; where it does not, there is nothing to test."""
    for name in (b"a\nb", b"c\xff"):
        try:
            for suffix in (b".png", b".txt"):
                with open(os.path.join(os.fsencode(tmp_path), name + suffix), "wb") as file:
                    file.write(b"x")
        except OSError:
            pytest.skip(f"this file system takes no file called {name}")
    samples, problems = read_folder(tmp_path)
    assert [sample.id for sample in samples] == ["a?b.png", "c?.png"]
    assert all(sample.path.read_bytes() == b"x" for sample in samples)
    assert problems == {}
