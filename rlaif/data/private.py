"""Personal data in a text: addresses and numbers that name somebody. Checked by the libraries that
know the number plans, so that not every long number counts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

import regex

# Names that RFC 2606 keeps for examples belong to nobody.
_EMAIL = regex.compile(
    r"\b[\w.+-]+@(?!(?:[\w-]+\.)*example\.(?:com|org|net)\b)(?:[\w-]+\.)+(?!(?:test|example|invalid|"
    r"localhost)\b)\p{L}{2,}\b"
)
_ADDRESS = regex.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]*(?::[0-9a-fA-F]*){2,7})"
)
_CARD = regex.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")
_IBAN = regex.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")


def has_email(text: str, regions: Sequence[str]) -> bool:
    """Whether there is an e-mail address; those of example domains do not count."""
    return _EMAIL.search(text) is not None


def has_phone(text: str, regions: Sequence[str]) -> bool:
    """Whether there is a phone number that is valid in one of `regions` (US, GB, ...), or an
    international one that is valid anywhere."""
    import phonenumbers

    return any(
        next(iter(phonenumbers.PhoneNumberMatcher(text, region)), None) is not None
        for region in regions or (None,)
    )


def has_ip(text: str, regions: Sequence[str]) -> bool:
    """Whether there is an IP address that the public network routes."""
    return any(_is_public(found.rstrip(".:")) for found in _ADDRESS.findall(text))


def _is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def has_card(text: str, regions: Sequence[str]) -> bool:
    """Whether there is a payment card's number: 13 to 19 digits whose check digit is right."""
    from stdnum import luhn

    return any(luhn.is_valid(regex.sub(r"\D", "", found)) for found in _CARD.findall(text))


def has_iban(text: str, regions: Sequence[str]) -> bool:
    """Whether there is an international bank account number."""
    from stdnum import iban

    return any(iban.is_valid(found) for found in _IBAN.findall(text))


PRIVATE: dict[str, Callable[[str, Sequence[str]], bool]] = {
    "email": has_email,
    "phone": has_phone,
    "ip": has_ip,
    "card": has_card,
    "iban": has_iban,
}


def private_kinds(text: str, kinds: Sequence[str], regions: Sequence[str]) -> list[str]:
    """Which of `kinds` are in `text`, in their order."""
    return [kind for kind in kinds if PRIVATE[kind](text, regions)]
