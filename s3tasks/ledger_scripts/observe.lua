-- observe: a reader was served what an open intent wrote (or, for a delete, nothing). The write becomes current.
-- KEYS[1] the record   KEYS[2] the finished-write memory of this write id
-- ARGV[1] write id   [2] ticket that the served marker carries   [3] "<date> <etag> <version id> <size>"
--     [4] retention, seconds   [5] redelivery horizon, seconds
-- A write that has been replaced is recorded only if what was served is not older than any current write.
-- A delete keeps its intent and is not remembered as finished: a 404 does not prove that S3 was asked, so its task asks again.
-- Returns the text of the current write, or '' where nothing was recorded
local id, ticket, rest = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local record, problem = load_record(KEYS[1])
if not record then return problem end

local intent = record.intents[id]
if not intent or ticket < intent.first or ticket > intent.last then return '' end
if replaced(record, intent.last) then
  local date = tonumber(string.match(rest, '^%d+'))
  for _, current in pairs(record.currents) do
    if intent.does == 'd' or date < current.date then return '' end
  end
end

drop_replaced_by(record, ticket)
local text = insert(record, id, intent.first, rest)
if intent.does == 'w' then
  close_intent(record, id, ticket)
  redis.call('SET', KEYS[2], text, 'EX', ARGV[5])
end
save(record, ARGV[4])
return text
