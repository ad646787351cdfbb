"""What is asked of S3, by trying it on scratch objects, and what its answers mean.

It never leaves an object behind where it may remove it, and never believes an endpoint's name but Amazon's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from s3tasks.doctor.findings import Examination, Grade, Said, bad, ok, unknown, warn
from s3tasks.doctor.lag_questions import LAG, Lags, lag, measured
from s3tasks.doctor.scratch import Scratches
from s3tasks.errors import S3TasksError, StoreError, StoreUnavailable
from s3tasks.evidence import Landed, Served
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings, without_credentials
from s3tasks.store import Condition, Endpoint, Store
from s3tasks.trials import SCRATCH_BODY, WRONG_ETAG, Heard, Honours, tried

FREE = Condition()
UNKNOWN_VERSION = "s3tasksDoctorKnowsNoSuchVersion0"
_MOST_CLOCK_DOUBT_SECONDS = 2

ACCESS = ("s3.access", "Can objects be written, read and deleted?")
MARKER = ("s3.metadata", "Does an object keep the marker of the write that put it there?")
ETAG = ("s3.etag", "Does a write say the ETag that is served afterwards?")
READ_IF_MATCH = ("s3.read_if_match", "Does a read with If-Match get only that object?")
PARTS = ("s3.multipart", "Does a write in parts say the ETag that is served afterwards?")
VERSIONS = ("s3.versions", "Can an overwritten version still be read?")
CHECKSUMS = ("s3.checksums", "Is the checksum that was sent with an object given back?")
DATES = ("s3.dates", "Do its dates tell which of two writes came later?")
CLEAN = ("s3.cleanup", "Are the scratch objects gone?")
CONDITIONS = {what: (f"s3.{what.name.lower()}", f"Is {what.value} honoured?") for what in Honours}


@dataclass
class StoreFacts:
    """What has been found out, for the conclusions. None: it has not."""

    write_endpoint_url: str = ""
    honours: dict[Honours, bool] = field(default_factory=dict)
    marker_kept: bool | None = None
    dates_tell: bool | None = None
    versions: bool | None = None
    lags: Lags | None = None


@dataclass(frozen=True)
class Trial:
    """Where and how S3 is tried: below a prefix of the bucket, `tries` times for the lag, waiting `wait_seconds` for each."""

    bucket: str
    prefix: str = ""
    tries: int = 20
    wait_seconds: float = 30.0


def ask_store(examination: Examination, settings: Settings, trial: Trial) -> StoreFacts | None:
    """Asks; None where the bucket could not be used at all."""
    # Each answer is looked at as it comes: no second tries, no endless silences, and If-Match is sent whatever the settings say.
    eager = settings.replace(
        send_if_match=True, store_attempts=1, on_stale="retry",
        connect_timeout_seconds=min(settings.connect_timeout_seconds, 5.0),
        read_timeout_seconds=min(settings.read_timeout_seconds, 10.0),
    )
    store = Store(eager, insists=True)
    facts = StoreFacts(store.write_endpoint_url)
    scratches = Scratches(store, trial.bucket, trial.prefix)
    try:
        if examination.ask(*ACCESS, lambda: access(store, scratches, eager)).verdict is not Grade.OK:
            rest = (MARKER, ETAG, READ_IF_MATCH, *CONDITIONS.values(), PARTS, VERSIONS, CHECKSUMS, DATES, LAG)
            examination.leave_out("the bucket cannot be used", *rest)
            return None
        _ask_about_objects(examination, store, scratches, facts, settings)
        _ask_about_conditions(examination, store, scratches, facts, settings)
        facts.lags = measured(examination, store, scratches, eager, trial.tries, trial.wait_seconds)
        examination.ask(*LAG, lambda: lag(facts.lags, settings, facts.write_endpoint_url))
        return facts
    finally:
        _clean_up(examination, scratches)
        store.close()


def _clean_up(examination: Examination, scratches: Scratches) -> None:
    if not scratches.made:
        examination.leave_out("nothing was written", CLEAN)
        return
    landed = scratches.landed
    examination.keep(*CLEAN, cleaned(scratches.remove_all(), landed, scratches.folder))


def _ask_about_objects(
    examination: Examination, store: Store, scratches: Scratches, facts: StoreFacts, settings: Settings
) -> None:
    questions: dict[tuple[str, str], Callable[[], Said]] = {
        MARKER: lambda: marker(store, scratches, facts, settings),
        ETAG: lambda: etag(store, scratches),
        READ_IF_MATCH: lambda: read_if_match(store, scratches, settings),
        PARTS: lambda: parts(store, scratches),
        VERSIONS: lambda: versions(store, scratches, facts),
        CHECKSUMS: lambda: checksums(store, scratches),
        DATES: lambda: dates(store, scratches, facts, settings),
    }
    for question, answer in questions.items():
        examination.ask(*question, answer)


def _ask_about_conditions(
    examination: Examination, store: Store, scratches: Scratches, facts: StoreFacts, settings: Settings
) -> None:
    def asked(what: Honours) -> Said:
        heard = tried(what, store, scratches.name())
        facts.honours[what] = heard.honoured
        return condition(what, heard, settings)

    for what, question in CONDITIONS.items():
        examination.ask(*question, lambda what=what: asked(what))  # type: ignore[misc]


def access(store: Store, scratches: Scratches, settings: Settings) -> Said:
    """The first write, read and delete of all: what is wrong with rights, names or checksums shows here."""
    scratch = scratches.new()
    try:
        scratch.put(FREE)
        answer = store.get(scratch.ref, Endpoint.WRITE)
        body = answer.read() if answer.has_body else None
        scratch.delete(FREE)
    except StoreUnavailable as problem:
        return bad(str(problem), "look at S3 itself, at endpoint_url, and at what lies between")
    except StoreError as refusal:
        return _refused(refusal, scratches, settings)
    place = without_credentials(store.write_endpoint_url)
    if body != SCRATCH_BODY:
        return bad(f"{place} serves something else than was written a moment ago", "look at S3 itself")
    return ok(f"yes, at {place}")


def _refused(refusal: StoreError, scratches: Scratches, settings: Settings) -> Said:
    if refusal.code == "NoSuchBucket":
        return bad(str(refusal), "make the bucket, or name another with --bucket")
    if refusal.status in (401, 403) or "Credentials" in refusal.code:
        return bad(str(refusal), "give boto3 credentials with the rights of worker_config/iam-policy.json")
    if works_without_checksums(scratches.name(), settings):
        variables = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
        return bad(f"{refusal}; without botocore's default checksums it works", f"export {variables} for workers and producers")
    return bad(str(refusal), "look whether endpoint_url is an S3 at all, and what it means by this")


def works_without_checksums(ref: ObjectRef, settings: Settings) -> bool:
    """Whether an endpoint takes a write once botocore's default checksums are left out."""
    store = Store(settings, required_checksums_only=True)
    scratch = Scratches(store, ref.bucket, "").at(ref)
    try:
        scratch.put(FREE)
    except (StoreError, StoreUnavailable):
        return False
    finally:
        scratch.remove()
        store.close()
    return True


def marker(store: Store, scratches: Scratches, facts: StoreFacts, settings: Settings) -> Said:
    """User metadata must come back: the marker is how a write is known again whatever becomes of its ETag."""
    scratch = scratches.new()
    scratch.put(FREE)
    served = _served(store, scratch.ref)
    facts.marker_kept = served.marker is not None
    if facts.marker_kept:
        return ok("yes")
    advice = "let user metadata (x-amz-meta-s3tasks-write) through; until then set outside_writes=reject"
    heard = "no: a write is known again by its ETag only, and that of a worker that died by nothing"
    return warn(heard, advice, outside_writes="reject") if settings.outside_writes == "adopt" else ok(heard)


def etag(store: Store, scratches: Scratches) -> Said:
    """S3 itself can only be asked by ETag."""
    scratch = scratches.new()
    return _same_etag(scratch.put(FREE), _served(store, scratch.ref))


def parts(store: Store, scratches: Scratches) -> Said:
    """Some stores complete an upload with an empty ETag, or serve another one afterwards: the marker then tells."""
    scratch = scratches.new()
    return _same_etag(scratch.put_in_parts(FREE), _served(store, scratch.ref))


def _same_etag(landed: Landed, served: Served) -> Said:
    if landed.etag is None:
        return ok("it says none: the write is known by its marker, and its ETag taken from a HEAD")
    if landed.etag != served.etag:
        return ok(f"it says {landed.etag} and serves {served.etag}: the write is known by its marker")
    return ok("yes")


def _served(store: Store, ref: ObjectRef) -> Served:
    served = store.head(ref, Endpoint.WRITE).served
    if served is None:
        raise StoreError("HeadObject", ref.bucket, ref.key, "NotVisible", 404, message="the write endpoint serves nothing")
    return served


def read_if_match(store: Store, scratches: Scratches, settings: Settings) -> Said:
    """What the write endpoint answers to the right and to a wrong ETag, and for a key that is missing."""
    scratch = scratches.new()
    etag = scratch.put(FREE).etag or _served(store, scratch.ref).etag
    right = _reply(store, scratch.ref, etag)
    wrong, missing = _reply(store, scratch.ref, WRONG_ETAG), _reply(store, scratches.name(), WRONG_ETAG)
    heard = f"right ETag: {right}, wrong ETag: {wrong}, missing key: {missing}"
    if right != "served":
        if not settings.send_if_match:
            return ok(f"{heard}: it is not sent (send_if_match)")
        return warn(
            f"{heard}: it refuses If-Match, and each read is asked twice", "set send_if_match=false", send_if_match="false"
        )
    if wrong == "412":
        return ok(heard)
    return ok(f"{heard}: it takes no notice of If-Match; every answer is compared here anyway")


def _reply(store: Store, ref: ObjectRef, etag: str | None) -> str:
    try:
        answer = store.get(ref, Endpoint.WRITE, if_match=etag)
    except StoreError as refusal:
        return str(refusal.status or refusal.code)
    answer.close()
    if answer.condition_failed:
        return "412"
    return "404" if answer.served is None else "served"


def condition(what: Honours, heard: Heard, settings: Settings) -> Said:
    """A condition that is ignored is refused here rather than sent, unless the settings say to trust the endpoint."""
    if heard.honoured:
        return ok(f"yes ({heard.said})")
    said = f"no ({heard.said})"
    if what is Honours.COPY_SOURCE_IF_MATCH:
        return ok(f"{said}: copies are made in parts, and completed only if the source is still the same")
    if settings.conditional_writes == "trust":
        advice = "set conditional_writes=probe: what is ignored is refused then"
        return bad(f"{said}, and trusted all the same", advice, conditional_writes="probe")
    return ok(f"{said}: whoever asks for it gets a StoreError")


def versions(store: Store, scratches: Scratches, facts: StoreFacts) -> Said:
    """Where the bucket keeps versions, a ref names bytes that never change."""
    scratch = scratches.new()
    first = scratch.put(FREE, b"first").version_id
    scratch.put(FREE, b"second")
    facts.versions = first is not None
    if first is None:
        return ok("no, the bucket keeps none: a ref whose object was overwritten is Superseded")
    answer = store.get(scratch.ref, Endpoint.WRITE, version_id=first)
    body = answer.read() if answer.has_body else None
    if body != b"first":
        facts.versions = False
        return bad(f"version {first} is served as something else", "turn versioning off in this bucket, or look at S3 itself")
    return ok(f"yes; asked for a version that never was, it answers {_unknown_version(store, scratch.ref)}")


def _unknown_version(store: Store, ref: ObjectRef) -> str:
    try:
        answer = store.get(ref, Endpoint.WRITE, version_id=UNKNOWN_VERSION)
    except StoreError as refusal:
        return str(refusal.status)
    answer.close()
    return "404" if answer.served is None else "with another one (which is told by its id)"


def checksums(store: Store, scratches: Scratches) -> Said:
    """A checksum of the whole object is how a large download is checked."""
    scratch = scratches.new()
    scratch.put(FREE)
    head = store.head(scratch.ref, Endpoint.WRITE, with_checksum=True).head
    if head is None or head.checksum is None:
        return ok("no: large downloads are checked by their length and ETag")
    return ok(f"yes, {head.checksum[0]}")


def dates(store: Store, scratches: Scratches, facts: StoreFacts, settings: Settings) -> Said:
    """Somebody else's newer write is told from an older object by the write endpoint's own clock."""
    scratch = scratches.new()
    landed, served = scratch.put(FREE), _served(store, scratch.ref)
    apart = abs(served.last_modified - landed.date)
    facts.dates_tell = bool(landed.date and served.last_modified) and apart <= _MOST_CLOCK_DOUBT_SECONDS
    if facts.dates_tell:
        return ok("yes")
    heard = f"no: answers are dated {landed.date or 'never'}, the object {served.last_modified or 'never'} (seconds since 1970)"
    if settings.outside_writes == "reject":
        return ok(heard)
    advice = "set outside_writes=reject: other programs' writes cannot be told from older objects here"
    return warn(heard, advice, outside_writes="reject")


def cleaned(problem: S3TasksError | None, landed: bool, folder: str) -> Said:
    """Whether everything that was written is gone again. `landed`: something is known to have been written."""
    if problem is None:
        return ok("yes")
    if not isinstance(problem, StoreUnavailable):
        return bad(f"no: something is left below {folder}", "remove it by hand, and give the credentials s3:DeleteObject")
    advice = "look there when S3 is back, and remove what is left"
    if landed:
        return bad(f"no: S3 no longer answers, and something is left below {folder}", advice)
    return unknown(f"S3 does not answer; if it has written something all the same, it is below {folder}", advice)


def left_out(examination: Examination, why: str) -> None:
    """Notes that S3 has not been asked at all."""
    rest = (ACCESS, MARKER, ETAG, READ_IF_MATCH, PARTS, VERSIONS, CHECKSUMS, DATES, *CONDITIONS.values(), LAG, CLEAN)
    examination.leave_out(why, *rest)
