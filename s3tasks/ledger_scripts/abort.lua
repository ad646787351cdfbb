-- abort: S3 said a definite no to the one and only attempt. Closes its intent, and leaves one with other attempts open.
-- KEYS[1] the record
-- ARGV[1] write id   [2] ticket   [3] retention, seconds
-- Returns 1 where the intent was closed, else 0
local id, ticket = ARGV[1], tonumber(ARGV[2])
local record, problem = load_record(KEYS[1])
if not record then return problem end

local intent = record.intents[id]
if not intent or intent.first ~= ticket or intent.last ~= ticket then return 0 end
drop_intent(record, id)
record.intents[id] = nil
if next(record.intents) or next(record.currents) then save(record, ARGV[3]) else redis.call('DEL', KEYS[1]) end
return 1
