-- abort: S3 said a definite no to an attempt, which ends. Other attempts of the same write keep its intent open.
-- KEYS[1] the record   KEYS[2] the finished-write memory of this write id
-- ARGV[1] write id   [2] ticket   [3] retention, seconds
-- A delete that readers had taken for done (see observe) is no longer, once none of its attempts can land; one that another of its
-- attempts has committed is.
-- Returns 1 where no attempt is left open, else 0
local id, ticket = ARGV[1], tonumber(ARGV[2])
local record, problem = load_record(KEYS[1])
if not record then return problem end

local does = record.intents[id] and record.intents[id].does
end_attempt(record, id, ticket)
if record.intents[id] then
  save(record, ARGV[3])
  return 0
end
if does == 'd' and record.currents[id] and not finished_text(KEYS[2]) then
  drop_current(record, id)
end
if next(record.intents) or next(record.currents) then save(record, ARGV[3]) else redis.call('DEL', KEYS[1]) end
return 1
