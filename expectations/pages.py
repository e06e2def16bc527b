"""The pages of the Data Docs: Great Expectations' own, without what their author would fetch."""

import re
from typing import Any

from great_expectations.render.view import DefaultJinjaIndexPageView, DefaultJinjaPageView
from jinja2 import BytecodeCache
from jinja2.bccache import Bucket

#: A browser would fetch the logo from the vendor, with the id of this context.
_LOGO = re.compile(r'<img\s+class="NO-CACHE".*?/>', re.DOTALL)


class _Compiled(BytecodeCache):
    """The templates that this process has compiled: half of what a page costs."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._kept:
            bucket.bytecode_from_string(self._kept[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._kept[bucket.key] = bucket.bytecode_to_string()


_compiled = _Compiled()


class Page(DefaultJinjaPageView):
    """A page of a suite or of a validation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.env.bytecode_cache = _compiled

    def render(self, document: Any, template: Any = None, **given: Any) -> str:
        """The page as HTML."""
        # Great Expectations leaves this untyped.
        text = super().render(document, template, **given)  # type: ignore[no-untyped-call]
        return _LOGO.sub("Tidemark", text)


class Index(Page, DefaultJinjaIndexPageView):
    """The list of all pages."""


def compile_ahead() -> None:
    """Compile every template for the pages of this process."""
    environment = Page().env
    for name in environment.list_templates(extensions=["j2"]):
        environment.get_template(name)
