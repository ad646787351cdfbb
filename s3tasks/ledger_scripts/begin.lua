-- begin: a write is about to ask S3. Opens its intent, or says why S3 must not be asked.
-- KEYS[1] the record   KEYS[2] the finished-write memory of this write id
-- ARGV[1] write id   [2] 'w' or 'd' (a delete)   [3] retention, seconds   [4] redelivery horizon, seconds
--     [5] lease for on_overlap="serialize", microseconds; '0' allows overlapping writes
-- Returns {'finished', text}    it had finished: text is what was committed
--      or {'superseded', text}  an intent was open and has been replaced meanwhile; the write is finished now, though the attempt
--                               that was open may still land
--      or {'busy', microseconds} another write's intent is open, for at most so long
--      or {'open', ticket, attempts} go on; attempts counts those that may land, this one included
local id = ARGV[1]
local finished, trouble = finished_text(KEYS[2])
if trouble then return trouble end
if finished then return {'finished', finished} end

local record, problem = load_record(KEYS[1])
if not record then return problem end
local intent = record.intents[id]

if intent and replaced(record, last(intent)) then
  local text = insert(record, id, intent.tickets[1], UNKNOWN_DATE .. (intent.does == 'd' and DELETED or UNKNOWN))
  finish(record, id, math.huge)
  save(record, ARGV[3])
  redis.call('SET', KEYS[2], text, 'EX', ARGV[4])
  return {'superseded', text}
end

local clock, lease = now(), tonumber(ARGV[5])
local busy = 0
for other, theirs in pairs(record.intents) do
  local kept_seconds = tonumber(theirs.does == 'f' and ARGV[4] or ARGV[3])
  if last(theirs) < clock - kept_seconds * 1000000 then keep_attempts(record, other, {})
  elseif other ~= id and theirs.does ~= 'f' then busy = math.max(busy, last(theirs) + lease - clock) end
end
if lease > 0 and busy > 0 then return {'busy', whole(busy)} end

local ticket = next_seq(record)
local attempts = record.intents[id] and record.intents[id].tickets or {}
record.intents[id] = {does = ARGV[2], tickets = attempts}
table.insert(attempts, ticket)
keep_attempts(record, id, attempts)
save(record, ARGV[3])
return {'open', whole(ticket), #attempts}
