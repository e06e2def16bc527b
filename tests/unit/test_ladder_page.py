"""The ladder's page says what the policy says."""

from tidemark import ladder_page, policy
from tidemark.config import Settings

SETTINGS = Settings.from_env({})


def test_the_page_in_the_repository_is_that_of_the_policy() -> None:
    page = ladder_page.path(SETTINGS).read_text(encoding="utf-8")
    assert page == ladder_page.render(policy.read(SETTINGS)), "run `make docs`"


def test_every_class_table_and_number_is_on_the_page() -> None:
    ladder = policy.read(SETTINGS)
    page = ladder_page.render(ladder)
    classes, columns = (
        page.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
        for heading in ("Classes", "Columns")
    )
    assert len(ladder.classes) > 5
    for name, own in ladder.classes.items():
        row = next(line for line in classes if line.startswith(f"| `{name}` |"))
        for text in (own.basis, str(own.window or ""), str(own.floor or ""), own.clock):
            assert text in row
    for table, known in ladder.columns.items():
        (row,) = (line for line in columns if line.startswith(f"| `{table}` |"))
        assert all(f"`{column}`" in row for column in known)
