"""No credential survives `redact`, in whatever form a storage library may put it into its messages."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omniges.storage.redact import one_line, redact, secrets_in_environment, secrets_in_url

MARK = "Zq7Zq7"  # begins every secret of these tests, and nothing else has it
ID = "AKIA" + "IOSFODNN7EXAMPLE"
KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY"
URL_WORD = st.text(string.ascii_letters + string.digits + "-._~!$'()*+,%", min_size=0, max_size=20)
SECRET = URL_WORD.map(lambda tail: MARK + tail)
PROTOCOL = st.sampled_from(["http", "https", "s3", "ftp", "webdav+https"])
AROUND = st.sampled_from(["", "GET ", "url='", 'got "', "<", "ClientResponseError: 403, url=URL('"])


class TestRedact:
    @settings(deadline=None)
    @given(AROUND, PROTOCOL, URL_WORD, SECRET)
    def test_passwords_in_urls(self, around: str, protocol: str, user: str, password: str) -> None:
        assert MARK not in redact(f"{around}{protocol}://{user}:{password}@host.org:8080/shards/train.tar and so on")

    @settings(deadline=None)
    @given(AROUND, PROTOCOL, st.text("/?#@:[]", min_size=1, max_size=3))
    def test_passwords_with_characters_that_belong_encoded(self, around: str, protocol: str, odd: str) -> None:
        assert MARK not in redact(f"{around}{protocol}://user:{MARK}{odd}{MARK}@host.org/shards")

    @settings(deadline=None)
    @given(AROUND, PROTOCOL, SECRET)
    def test_a_user_alone(self, around: str, protocol: str, token: str) -> None:
        assert MARK not in redact(f"{around}{protocol}://{token}@host.org/shards")

    @settings(deadline=None)
    @given(AROUND, st.lists(st.tuples(st.sampled_from(["X-Amz-Signature", "sig", "se", "a"]), SECRET), min_size=1))
    def test_query_values(self, around: str, pairs: list[tuple[str, str]]) -> None:
        query = "&".join(f"{name}={value.replace(chr(39), '')}" for name, value in pairs)
        assert MARK not in redact(f"{around}https://host.org/shards/a.tar?{query} and so on")

    def test_a_query_that_is_one_word(self) -> None:
        assert MARK not in redact(f"GET https://host.org/shards?{MARK} failed")

    @pytest.mark.parametrize(
        "name",
        [
            "aws_secret_access_key",
            "AWS_SESSION_TOKEN",
            "x-amz-security-token",
            "X-Amz-Credential",
            "Signature",
            "password",
            "apikey",
            "AccountKey",
            "sig",
            "Set-Cookie",
        ],
    )
    @pytest.mark.parametrize("form", ["{}={}", "{}: {}", "'{}': '{}'", "{{'{}': b'{}'}}", '"{}" : "{}"', "{} = {}"])
    def test_values_behind_a_telling_name(self, name: str, form: str) -> None:
        assert MARK not in redact("some text, " + form.format(name, MARK + "+/=x") + ", more")

    @pytest.mark.parametrize(
        "text",
        [
            f"Authorization: Bearer {MARK}",
            f"Authorization: Basic {MARK}==",
            f"headers={{'Authorization': 'Basic {MARK}=='}}",
            f"sent bearer {MARK}",
            f"AWS4-HMAC-SHA256 Credential={MARK}/2026/us-east-1/s3/aws4_request, SignedHeaders=host, Signature={MARK}",
            f"<Error><AWSAccessKeyId>{MARK}</AWSAccessKeyId><StringToSign>GET\n{MARK}</StringToSign></Error>",
            f"<SignatureProvided>{MARK}</SignatureProvided>",
            f"-----BEGIN RSA PRIVATE KEY-----\n{MARK}\n-----END RSA PRIVATE KEY-----",
            f"-----BEGIN PRIVATE KEY-----\n{MARK}",
        ],
    )
    def test_headers_elements_and_keys(self, text: str) -> None:
        assert MARK not in redact(text)

    @pytest.mark.parametrize(
        "secret",
        [
            ID,
            KEY,
            "hf_" + "AbCdEfGhIjKlMnOpQrStUv",
            "ghp_" + "0123456789abcdefABCDEF",
            "AIza" + "SyA-0123456789_abcdefghijklmnopqrs",
            "ya29." + "a0AfH6SMBx-y_z",
            "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxIn0" + ".c2ln",
        ],
    )
    @pytest.mark.parametrize("form", ["{}", "the key {} was refused", "key={}", "'{}'", "({})."])
    def test_the_known_shapes_of_keys_and_tokens(self, secret: str, form: str) -> None:
        assert secret not in redact(form.format(secret))

    @settings(deadline=None)
    @given(st.text(min_size=6, max_size=30), st.text(max_size=30), st.text(max_size=30))
    def test_secrets_that_are_given(self, secret: str, before: str, after: str) -> None:
        hidden = redact(f"{before}{secret}{after}", [secret])
        assert secret not in hidden.replace("***", "")

    @settings(deadline=None)
    @given(st.text())
    @example("https://a:b@c/d?e=f&g&h=i token: x Authorization: Bearer z")
    def test_twice_is_once(self, text: str) -> None:
        once = redact(text)
        assert redact(once) == once

    @settings(deadline=None)
    @given(st.text(string.ascii_letters + string.digits + "-._", min_size=1, max_size=15), st.integers(1, 65535))
    def test_what_a_person_needs_stays(self, name: str, port: int) -> None:
        text = (
            f"http://127.0.0.1:{port}/shards/{name}.tar: cannot read, the server answers 503. tokenizer.json: 12 bytes"
        )
        assert redact(text) == text

    def test_a_digest_is_no_secret(self) -> None:
        text = f"expected sha256 {'0f' * 32}, sha1 {'a1' * 20} found"
        assert redact(text) == text


class TestWhereSecretsAre:
    @settings(deadline=None)
    @given(PROTOCOL, URL_WORD.filter(lambda user: "%" not in user), SECRET)
    def test_user_and_password_of_a_url(self, protocol: str, user: str, password: str) -> None:
        assert {user, password} <= set(secrets_in_url(f"{protocol}://{user}:{password}@host.org/shards"))

    def test_query_values_also_decoded(self) -> None:
        assert set(secrets_in_url("https://h/x?sig=a%2Fb&word")) >= {"a%2Fb", "a/b", "word"}

    def test_a_plain_url_has_none(self) -> None:
        assert secrets_in_url("http://127.0.0.1:8080/shards/a@b") == []

    def test_variables_by_their_names(self) -> None:
        environment = {
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_ACCESS_KEY_ID": "i",
            "HF_TOKEN": "t",
            "PATH": "p",
            "HOME": "h",
        }
        assert secrets_in_environment(environment) == ["s", "i", "t"]


class TestOneLine:
    @settings(deadline=None)
    @given(st.text(), st.integers(1, 50))
    def test_is_one_printable_line_of_bounded_length(self, text: str, maximum: int) -> None:
        line = one_line(text, maximum)
        assert len(line) <= maximum
        assert line.isprintable()
