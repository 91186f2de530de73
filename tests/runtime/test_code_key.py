import importlib

import pytest

from crossdistill.methods.logit_method import LogitConfig
from crossdistill.runtime.code_key import KNOWN_AS, code_key


@pytest.mark.parametrize(("now", "before"), KNOWN_AS.items())
def test_modules_that_moved_have_their_old_names_in_keys(now: str, before: str) -> None:
    importlib.import_module(now)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(before)


def test_a_class_that_moved_has_the_key_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    key = code_key(config=LogitConfig).text()
    monkeypatch.setattr(LogitConfig, "__module__", "crossdistill.combination")
    assert code_key(config=LogitConfig).text() == key
