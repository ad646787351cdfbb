"""Which object is meant: what is taken for a ref, what is refused, and how keys and markers are spelled."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from s3tasks import InvalidRef, ObjectRef
from s3tasks.refs import MAX_KEY_BYTES, Marker, checked_etag, finished_key, normal_etag, record_key

ACCESS_POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/reports"
MULTI_REGION = "arn:aws:s3::123456789012:accesspoint:mfzwi23gnjvgw.mrap"

HOSTILE_KEYS = [
    "k", "a b", "ключ/鍵/🔑", "{", "}", "{}", "}{", "}:x", "{a}{b}", "100%", "%2F", "a//b", "/leading", "trailing/", "?#&=+", "k\n",
    "...", "x" * MAX_KEY_BYTES, "é" * (MAX_KEY_BYTES // 2),
]
WRITE_IDS = ["5b2e7b1c-4a8e-4a55-9a43-000000000001", "id.2", "a:b", "}:x", "{", "%7D", " ", "ключ", ";"]

keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40).filter(
    lambda key: not {".", ".."} & set(key.split("/"))
)
buckets = st.sampled_from(["b", "bucket", "my.bucket-1", "Old_Bucket", "123", ACCESS_POINT, MULTI_REGION])
etags = st.none() | st.from_regex(r"[!#-~]{1,64}", fullmatch=True).filter(lambda text: normal_etag(text) == text)
numbers = st.none() | st.integers(0, 2**53)
refs = st.builds(
    ObjectRef, buckets, keys,
    etag=etags, version_id=st.none() | st.from_regex(r"[!-~]{1,64}", fullmatch=True),
    seq=numbers, size=numbers, deleted=st.booleans(),
)
write_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
nearly_refs = st.fixed_dictionaries(
    {},
    optional={
        name: anything | usual
        for name, usual in {
            "bucket": buckets, "key": keys, "etag": etags, "version_id": etags, "seq": numbers, "size": numbers,
            "deleted": st.booleans(), "unknown": st.none(),
        }.items()
    },
)


@pytest.mark.parametrize(
    ("given_uri", "bucket", "key"),
    [
        ("s3://bucket/key", "bucket", "key"),
        ("s3://bucket/a/b/c.txt", "bucket", "a/b/c.txt"),
        ("s3://bucket/with spaces in it", "bucket", "with spaces in it"),
        ("s3://bucket/ ", "bucket", " "),
        ("s3://bucket/ключ/鍵/🔑", "bucket", "ключ/鍵/🔑"),
        ("s3://bucket/{}{braces}", "bucket", "{}{braces}"),
        ("s3://bucket/100%/%2F%00", "bucket", "100%/%2F%00"),
        ("s3://bucket//double//slashes//", "bucket", "/double//slashes//"),
        ("s3://bucket/?a=b&c=d#e+f", "bucket", "?a=b&c=d#e+f"),
        ("s3://bucket/s3://bucket/key", "bucket", "s3://bucket/key"),
        ("s3://bucket/...", "bucket", "..."),
        ("s3://bucket/.hidden/a..b", "bucket", ".hidden/a..b"),
        ("s3://bucket/line\nbreak\ttab", "bucket", "line\nbreak\ttab"),
        ("s3://my.bucket-1_old/key", "my.bucket-1_old", "key"),
        ("s3://b/" + "x" * 1024, "b", "x" * 1024),
        ("s3://b/" + "é" * 512, "b", "é" * 512),
        (f"s3://{ACCESS_POINT}/a/b", ACCESS_POINT, "a/b"),
        (f"s3://{MULTI_REGION}/a/b", MULTI_REGION, "a/b"),
        (f"s3://{ACCESS_POINT}//b", ACCESS_POINT, "/b"),
    ],
)
def test_a_uri_names_its_bucket_and_its_key_untouched(given_uri: str, bucket: str, key: str) -> None:
    ref = ObjectRef.parse(given_uri)

    assert (ref.bucket, ref.key) == (bucket, key)
    assert ref.uri == given_uri
    assert not ref.exact


def test_a_ref_stands_for_itself() -> None:
    ref = ObjectRef("bucket", "key", etag="e", seq=3)

    assert ObjectRef.parse(ref) is ref


def test_a_dict_of_a_later_version_is_read_for_what_is_known_of_it() -> None:
    ref = ObjectRef.parse({"bucket": "b", "key": "k", "etag": "e", "checksum": {"sha256": "…"}, "schema": 9})

    assert ref == ObjectRef("b", "k", etag="e")


@pytest.mark.parametrize("quoted", ['"e"', 'W/"e"', "e", ' "e" '])
def test_a_dict_may_carry_the_etag_as_s3_sends_it(quoted: str) -> None:
    assert ObjectRef.parse({"bucket": "b", "key": "k", "etag": quoted}).etag == "e"


@pytest.mark.parametrize(
    ("ref", "is_exact"),
    [
        (ObjectRef("b", "k"), False),
        (ObjectRef("b", "k", size=3), False),
        (ObjectRef("b", "k", etag="e"), True),
        (ObjectRef("b", "k", seq=0), True),
        (ObjectRef("b", "k", seq=3, deleted=True), True),
    ],
)
def test_a_ref_is_exact_when_it_names_one_write(ref: ObjectRef, is_exact: bool) -> None:
    assert ref.exact is is_exact
    assert not ref.plain().exact
    assert ref.plain() == ObjectRef("b", "k")


# Python refuses to write out a number of so many digits.
HUGE = 10**5000

NO_REF_AT_ALL: list[tuple[Any, str]] = [
    (None, "not NoneType"),
    (b"s3://bucket/key", "not bytes"),
    (3, "not int"),
    (3.5, "not float"),
    (True, "not bool"),
    (["s3://bucket/key"], "not list"),
    (("bucket", "key"), "not tuple"),
    (HUGE, "not int"),
    (object(), "not object"),
    ("", "must begin with s3://"),
    ("bucket/key", "must begin with s3://"),
    ("http://bucket/key", "must begin with s3://"),
    ("s3:/bucket/key", "must begin with s3://"),
    ("S3://bucket/key", "must begin with s3://"),
    (" s3://bucket/key", "must begin with s3://"),
    ("s3n://bucket/key", "must begin with s3://"),
    ({}, "it has no bucket and no key"),
    ({"bucket": "b"}, "it has no key"),
    ({"key": "k"}, "it has no bucket"),
    ({"ref": {"bucket": "b", "key": "k"}}, "it has no bucket and no key"),
]

BAD_NAMES: list[tuple[Any, Any, str]] = [
    ("", "k", "bucket"),
    ("-b", "k", "bucket"),
    (".b", "k", "bucket"),
    ("b c", "k", "bucket"),
    ("bücket", "k", "bucket"),
    ("b\n", "k", "bucket"),
    ("b\0", "k", "bucket"),
    ("b{}", "k", "bucket"),
    ("b/c", "k", "bucket"),
    ("b@host", "k", "bucket"),
    ("b:80", "k", "bucket"),
    ("b" * 256, "k", "bucket"),
    ("arn:aws:s3:eu-west-1:123456789012:accesspoint/", "k", "bucket"),
    ("arn:aws:s3:eu-west-1:1234:accesspoint/reports", "k", "bucket"),
    ("arn:aws:iam::123456789012:role/reports", "k", "bucket"),
    (None, "k", "bucket"),
    (3, "k", "bucket"),
    (b"b", "k", "bucket"),
    ({"name": "b"}, "k", "bucket"),
    (HUGE, "k", "bucket"),
    ("b", "", "the key is missing"),
    ("b", None, "the key is missing"),
    ("b", 3, "key"),
    ("b", b"k", "key"),
    ("b", ["k"], "key"),
    ("b", {"name": "k"}, "key"),
    ("b", "x" * 1025, "1025 bytes"),
    ("b", "é" * 512 + "x", "1025 bytes"),
    ("b", "nul\0", "NUL"),
    ("b", "\0", "NUL"),
    ("b", "lone \ud800 surrogate", "Unicode"),
    ("b", ".", "resolved as a path"),
    ("b", "..", "resolved as a path"),
    ("b", "../other/key", "resolved as a path"),
    ("b", "a/../b", "resolved as a path"),
    ("b", "a/./b", "resolved as a path"),
    ("b", "a/..", "resolved as a path"),
    ("b", "/./", "resolved as a path"),
]

NO_TEXTS: list[Any] = ["a\r\nX-Injected: 1", "a\nb", "a\0b", "a b", "\u20ac", "\ud800", "x" * 1025, 3, True, b"e", ["e"], {}]
NO_NUMBERS: list[Any] = [True, False, -1, 1.0, 1.5, float("nan"), "1", [1], {}, b"1", 10**30]
NO_TRUTHS: list[Any] = [None, 0, 1, "true", "", [], {}]
BAD_WRITES: list[tuple[str, Any, str]] = [
    *(("etag", text, "etag") for text in [*NO_TEXTS, 'a"b']),
    *(("version_id", text, "version id") for text in [*NO_TEXTS, "", "é"]),
    *((name, number, name) for name in ("seq", "size") for number in NO_NUMBERS),
    *(("deleted", truth, "deleted") for truth in NO_TRUTHS),
]


def named(value: Any) -> str:
    return "huge" if value == HUGE else ascii(value).partition(" at 0x")[0][:40]


def text_of_refusal(given_ref: Any) -> str:
    with pytest.raises(InvalidRef) as refusal:
        ObjectRef.parse(given_ref)
    assert len(str(refusal.value)) < 400
    assert str(refusal.value).isprintable()
    return str(refusal.value)


@pytest.mark.parametrize(("given_ref", "problem"), NO_REF_AT_ALL, ids=named)
def test_what_is_no_ref_is_refused_and_shown(given_ref: Any, problem: str) -> None:
    text = text_of_refusal(given_ref)

    assert problem in text
    if isinstance(given_ref, str):
        assert given_ref in text


@pytest.mark.parametrize(("bucket", "key", "problem"), BAD_NAMES, ids=named)
def test_a_name_that_s3_could_not_have_is_refused_and_the_problem_named(bucket: Any, key: Any, problem: str) -> None:
    assert problem in text_of_refusal({"bucket": bucket, "key": key})


@pytest.mark.parametrize(("field", "value", "problem"), BAD_WRITES, ids=named)
def test_nonsense_about_the_write_is_refused_and_the_field_named(field: str, value: Any, problem: str) -> None:
    text = text_of_refusal({"bucket": "bucket", "key": "key", field: value})

    assert problem in text
    assert "s3://bucket/key" in text


@pytest.mark.parametrize("field", ["bucket", "key", "etag", "version_id", "seq", "size", "deleted"])
def test_no_field_may_be_a_dict_of_its_own(field: str) -> None:
    assert text_of_refusal({"bucket": "b", "key": "k", field: {"bucket": "b", "key": "k"}})


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://bucket", "s3://bucket/", "s3://bucket?x/key", "s3://user@bucket/key"])
def test_a_uri_without_a_bucket_or_a_key_is_refused(uri: str) -> None:
    assert uri.rstrip("/") in text_of_refusal(uri)


@pytest.mark.parametrize("rest", ["", "/", "_b/key", "?b/key", " /key", ":80/key"])
def test_nothing_may_stand_between_an_access_point_and_its_key(rest: str) -> None:
    assert text_of_refusal(f"s3://{ACCESS_POINT}{rest}")


@pytest.mark.parametrize("nothing", ["", '""', 'W/""', " ", "\n"])
def test_an_etag_that_says_nothing_never_turns_an_exact_ref_into_any(nothing: str) -> None:
    assert "etag" in text_of_refusal({"bucket": "b", "key": "k", "etag": nothing})


@given(refs)
def test_a_ref_comes_back_whole_from_json(ref: ObjectRef) -> None:
    plain = json.loads(json.dumps(ref.to_dict()))

    assert ObjectRef.parse(plain) == ref
    assert None not in plain.values()
    assert plain.keys() >= {"bucket", "key"}


@given(buckets, keys)
def test_a_uri_read_again_names_the_same_object(bucket: str, key: str) -> None:
    ref = ObjectRef(bucket, key)

    assert ObjectRef.parse(ref.uri) == ref


@given(anything | nearly_refs)
def test_whatever_is_given_is_a_ref_or_is_refused_as_one(value: Any) -> None:
    try:
        parsed = ObjectRef.parse(value)
    except InvalidRef:
        parsed = None

    assert parsed is None or ObjectRef.parse(parsed.to_dict()) == parsed


@given(st.text(max_size=30))
def test_whatever_follows_the_scheme_is_a_ref_or_is_refused_as_one(rest: str) -> None:
    try:
        parsed = ObjectRef.parse("s3://" + rest)
    except InvalidRef:
        parsed = None

    assert parsed is None or parsed.uri == "s3://" + rest


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        (None, None),
        ("", None),
        ('""', None),
        ("  ", None),
        ('"abc"', "abc"),
        ('W/"abc"', "abc"),
        (' "abc" ', "abc"),
        ("abc", "abc"),
        ('"d41d8cd98f00b204e9800998ecf8427e-38"', "d41d8cd98f00b204e9800998ecf8427e-38"),
        ('"W/abc"', "W/abc"),
        ('"1700000000.12345:abc"', "1700000000.12345:abc"),
    ],
)
def test_an_etag_loses_its_quotes_and_its_weakness_only(raw: str | None, normal: str | None) -> None:
    assert normal_etag(raw) == normal


@pytest.mark.parametrize("etag", ["abc", '"abc"', 'W/"abc"'])
def test_an_etag_to_match_may_be_given_as_s3_sends_it(etag: str) -> None:
    assert checked_etag(etag) == "abc"


@pytest.mark.parametrize("etag", ["", '""', "a b", "a\r\nX: 1", "x" * 1025, None, 3, b"abc", ["abc"], "\u20ac"], ids=ascii)
def test_what_is_no_etag_cannot_be_matched(etag: Any) -> None:
    with pytest.raises(ValueError, match="is not an ETag"):
        checked_etag(etag)


def test_the_redis_keys_are_spelled_as_stored_data_expects() -> None:
    ref = ObjectRef("invoices", "2024/17 {a}.pdf", etag="e", seq=3)

    assert record_key("s3", ref) == "s3:key:{invoices/2024/17 {a}.pdf}"
    assert finished_key("s3", ref, "5b2e7b1c-4a8e") == "s3:write:{invoices/2024/17 {a}.pdf}:5b2e7b1c-4a8e"


@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=lambda key: ascii(key)[:20])
@pytest.mark.parametrize("write_id", WRITE_IDS)
def test_both_redis_keys_of_an_object_are_in_one_cluster_slot(key: str, write_id: str) -> None:
    ref = ObjectRef("bucket", key)

    slots = {key_slot(name.encode()) for name in (record_key("s3", ref), finished_key("s3", ref, write_id))}

    assert len(slots) == 1


@given(st.tuples(buckets, keys), st.tuples(buckets, keys))
def test_two_objects_never_share_a_record(one: tuple[str, str], other: tuple[str, str]) -> None:
    same_name = record_key("s3", ObjectRef(*one)) == record_key("s3", ObjectRef(*other))

    assert same_name is (one == other)


# Few characters, so that hostile combinations come up often.
spelling = st.text("ab{}:/%", min_size=1, max_size=8)


@given(st.tuples(spelling, spelling), st.tuples(spelling, spelling))
@example(("k}:x", "y"), ("k", "x}:y"))
@example(("k", "a b"), ("k", "a%20b"))
def test_two_writes_never_share_a_memory(one: tuple[str, str], other: tuple[str, str]) -> None:
    names = [finished_key("s3", ObjectRef("b", key), write_id) for key, write_id in (one, other)]

    assert (names[0] == names[1]) is (one == other)


@given(spelling, spelling, spelling)
def test_a_record_and_a_memory_never_share_a_name(key: str, other_key: str, write_id: str) -> None:
    assert record_key("s3", ObjectRef("b", key)) != finished_key("s3", ObjectRef("b", other_key), write_id)


@given(write_ids, st.integers(0, 10**18 - 1), buckets, keys)
def test_a_marker_comes_back_whole_for_its_object(write_id: str, ticket: int, bucket: str, key: str) -> None:
    ref, marker = ObjectRef(bucket, key), Marker(write_id, ticket)

    text = marker.text(ref)

    assert Marker.parse(text, ref) == marker
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text


@pytest.mark.parametrize("other", [ObjectRef("bucket", "copy"), ObjectRef("other", "key"), ObjectRef("bucket", "key2")])
def test_a_marker_copied_to_another_name_is_none_of_ours(other: ObjectRef) -> None:
    text = Marker("id", 5).text(ObjectRef("bucket", "key"))

    assert Marker.parse(text, other) is None


REF = ObjectRef("bucket", "key")
HASH = Marker("id", 5).text(REF).rpartition(";")[2]


@pytest.mark.parametrize(
    "text",
    [
        None, "", ";", ";;", ";;;", "id", "id;5", f"id;5;{HASH};", f"id;5;{HASH[:-1]}", f"id;5;{HASH}0", f"id;5;{HASH.upper()}x",
        f";5;{HASH}", f"id;;{HASH}", f"id;-5;{HASH}", f"id;5.0;{HASH}", f"id; 5;{HASH}", f"id;5\n;{HASH}",
        f"id;\u0665;{HASH}", f"id;{'9' * 19};{HASH}",
        f"id;0x5;{HASH}", "\0" * 50, "🔑;🔑;🔑", ";" * 10_000,
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_garbage_is_no_marker(text: str | None) -> None:
    assert Marker.parse(text, REF) is None


@given(st.text(st.characters(), max_size=40), st.text("0123456789", max_size=20))
def test_no_text_that_somebody_puts_there_breaks_the_reader(write_id: str, ticket: str) -> None:
    found = Marker.parse(f"{write_id};{ticket};{HASH}", REF)

    assert found is None or found.ticket == int(ticket)
