-- observe: a reader was served what an open intent wrote (or, for a delete, nothing). The write becomes current.
-- KEYS[1] the record   KEYS[2] the finished-write memory of this write id
-- ARGV[1] write id   [2] ticket that the served marker carries; for a delete any open one   [3] rest
--     [4] retention, seconds   [5] redelivery horizon, seconds
-- A write that has been replaced is recorded only if what was served is not older than any current write.
-- A delete is recorded beside what it deletes, keeps its intent and is not remembered as finished: a 404 does not prove that S3 was
-- asked, so its task asks again, and only its commit (or S3's no) settles it.
-- Returns the text of the current write, or '' where nothing was recorded
local id, ticket, rest = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local record, problem = load_record(KEYS[1])
if not record then return problem end

local intent = record.intents[id]
if not intent then return '' end
if intent.does == 'd' then
  -- A 404 has no date of its own, and the time of the answer would hide what somebody else has written since.
  local newest = 0
  for _, current in pairs(record.currents) do newest = math.max(newest, current.date) end
  local text = insert(record, id, intent.tickets[1], struct.pack('>I4', newest) .. string.sub(rest, 5))
  save(record, ARGV[4])
  return text
end

if replaced(record, last(intent)) then
  for _, current in pairs(record.currents) do
    if date_of(rest) < current.date then return '' end
  end
end
if not end_attempt(record, id, ticket) then return '' end
drop_replaced_by(record, ticket, date_of(rest))
local text = insert(record, id, ticket, rest)
finish(record, id, ticket)
save(record, ARGV[4])
redis.call('SET', KEYS[2], text, 'EX', ARGV[5])
return text
