"""What a foreign error says may quote a key or a record: of it only its name and place are kept."""

from __future__ import annotations

import pytest

from beam_llm.errors import Kind, Rejected, Retryable, guarded, where_of


def leaking() -> None:
    raise ConnectionError("Authorization: Bearer sk-abcdef of a record's text")


def test_a_foreign_error_is_known_by_its_name_and_place():
    with pytest.raises(ConnectionError) as caught:
        leaking()
    assert where_of(caught.value).startswith("ConnectionError at test_foreign_errors.py:")
    assert where_of(KeyError("sk-abcdef")) == "KeyError"


def test_a_provider_that_raises_what_it_should_not_tells_nothing_of_it():
    with pytest.raises(Retryable) as caught:
        guarded(leaking)
    assert caught.value.kind == Kind.UNAVAILABLE
    assert "ConnectionError" in caught.value.message
    assert "sk-abcdef" not in caught.value.message
    assert "record" not in caught.value.message


def test_errors_of_this_package_pass_as_they_are():
    def refuse() -> None:
        raise Rejected(Kind.REJECTED, "HTTP 400: no such field", status=400)

    with pytest.raises(Rejected, match="no such field"):
        guarded(refuse)
