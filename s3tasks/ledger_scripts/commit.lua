-- commit: S3 has taken the write. It becomes current, and replaces what had been committed when its attempt began.
-- KEYS[1] the record   KEYS[2] the finished-write memory of this write id
-- ARGV[1] write id   [2] ticket of the attempt that ends   [3] ticket of the attempt whose bytes are in S3 (mostly the same)
--     [4] rest   [5] retention, seconds   [6] redelivery horizon, seconds
-- Other attempts of the same write stay open: a slow one may still land, and its bytes carry a date that tells when. A delete leaves
-- nothing to tell by, so its earlier attempts are over with it. Bytes that have been reported before (by the attempt that put them
-- there, in a commit whose answer was lost, or by a reader) are not reported again: a later write may have replaced them since.
-- Returns the text of the current write: "<begun><committed><rest>"
local id, ticket, landed = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local record, problem = load_record(KEYS[1])
if not record then return problem end

local unreported = end_attempt(record, id, ticket)
if landed ~= ticket then unreported = end_attempt(record, id, landed) end
local intent = record.intents[id]
if intent and intent.does == 'd' and last(intent) < ticket then keep_attempts(record, id, {}) end

local text = not unreported and finished_text(KEYS[2])
local deletes = is_deleted(ARGV[4])
if not text or (deletes and number_at(text, 1) ~= landed) then
  drop_replaced_by(record, landed, date_of(ARGV[4]))
  text = insert(record, id, landed, ARGV[4])
end
finish(record, id, ticket)
save(record, ARGV[5])
redis.call('SET', KEYS[2], text, 'EX', ARGV[6])
return text
