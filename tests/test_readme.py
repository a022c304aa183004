"""The README's example runs as it stands."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent


def test_example():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["logits"].lower.shape == (32, 10)
    assert (names["logits"].lower <= names["logits"].upper).all()
    assert names["verified"].shape == (32,)


def test_flagfiles_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"experiments/flags/(\w+\.flags)", text))
    assert named and named <= {path.name for path in (ROOT / "experiments" / "flags").iterdir()}
