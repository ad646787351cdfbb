-- The record of one object, as every move reads and writes it: this text is put before each of the moves.
--
-- A hash:  v              schema version, '2'
--          seq            the newest number handed out, where no field below shows it: microseconds of Redis's own clock, never
--                         twice, never backwards
--          i<write id>    an open intent: w, d or f and the tickets of the attempts that may still land, oldest first;
--                         of a write, of a delete, or of a write that another of its attempts has finished
--          c<write id>    a current write: its text is <begun> <committed> <rest>, and rest begins with <date>
--          u:<upload id>  the write id of a multipart upload that has begun and has not been seen to end
-- A number has 7 bytes and a date 4, highest first, and nothing stands between them. A write id is ':' and its text, or a UUID's 16
-- bytes and what follows. What rest holds behind the date is for ledger_spelling.py, which tells why all this is so short.
-- A field that cannot be read is dropped. A record of schema 1 is spelled anew by the first move that meets it; one of any other
-- schema is a newer version's: every move leaves it as it is and answers with the error S3TASKSSCHEMA <schema>.

local SCHEMA, FORMER_SCHEMA = '2', '1'

-- Beyond it a double has no whole numbers left, and counting on would stand still.
local LARGEST_NUMBER = 9000000000000000

local UNKNOWN_DATE, UNKNOWN, DELETED = '\0\0\0\0', ' * * *', ' ! * *'

-- The write id of what somebody else has written, and how far two dates of one clock of S3's must be apart to tell which is newer.
local SOMEBODY, CLOCK_DOUBT_SECONDS = ':', 1

local function is_deleted(rest)
  return string.sub(rest, 5, 6) == ' !'
end

local function spelled_number(number)
  return struct.pack('>I7', number)
end

-- The number at this place of the text; nil where there is none that can be counted on from.
local function number_at(text, place)
  if #text < place + 6 then return nil end
  local value = struct.unpack('>I7', text, place)
  return value <= LARGEST_NUMBER and value or nil
end

-- A current write; nil where the text holds none.
local function current_of(text)
  local begun, committed = number_at(text, 1), number_at(text, 8)
  if not (begun and committed and string.find(text, '^[%z\1-\31 ]', 19)) then return nil end
  local date = struct.unpack('>I4', text, 15)
  return {begun = begun, committed = committed, date = date, rest = string.sub(text, 15)}
end

-- An open intent; nil where the text holds none.
local function intent_of(text)
  local intent = {does = string.match(text, '^[wdf]'), tickets = {}}
  for place = 2, #text, 7 do
    local ticket = number_at(text, place)
    if not ticket then return nil end
    table.insert(intent.tickets, ticket)
  end
  return intent.does and #intent.tickets > 0 and intent or nil
end

local function is_write_id(id)
  return string.sub(id, 1, 1) == ':' or #id >= 16
end

-- What schema 1 wrote as words: a number that may be, a write id, a current write, the tickets of an intent.

local function former_number(text)
  if not text or not string.match(text, '^%d+$') or #text > 16 then return nil end
  local value = tonumber(text)
  return value <= LARGEST_NUMBER and value or nil
end

local function former_write_id(id)
  local two_bytes = string.rep('[0-9a-f]', 4)
  local uuid = string.match(id, '^' .. two_bytes .. two_bytes .. string.rep('%-' .. two_bytes, 4) .. two_bytes .. two_bytes)
  local raw = uuid and string.gsub(string.gsub(uuid, '%-', ''), '..', function(byte) return string.char(tonumber(byte, 16)) end)
  if not raw or string.sub(raw, 1, 1) == ':' then return ':' .. id end
  return raw .. string.sub(id, #uuid + 1)
end

local function former_current(text)
  local begun, committed, date, rest = string.match(text, '^(%d+) (%d+) (%d+)( %S+ %S+ [%d*]+)$')
  begun, committed, date = former_number(begun), former_number(committed), former_number(date)
  if not (begun and committed and date) then return nil end
  return spelled_number(begun) .. spelled_number(committed) .. struct.pack('>I4', math.min(date, 4294967295)) .. rest, committed
end

local function former_intent(text)
  local does, rest = string.match(text, '^([wdf])([ %d]*)$')
  local last
  for word in string.gmatch(rest or '', '%d+') do
    last = former_number(word)
    if not last then return nil end
    does = does .. spelled_number(last)
  end
  return last and does, last
end

-- The fields of schema 1 as they are spelled now. One with a number that the record has not counted yet is dropped: no move has put
-- it there.
local function spelled_anew(key, flat)
  local seq, fields = 0, {'v', SCHEMA}
  for n = 1, #flat, 2 do
    if flat[n] == 'seq' then seq = former_number(flat[n + 1]) or 0 end
  end
  redis.call('HSET', key, 'v', SCHEMA, 'seq', string.format('%.0f', seq))
  for n = 1, #flat, 2 do
    local name, value = flat[n], flat[n + 1]
    local kind, id = string.sub(name, 1, 2), string.sub(name, 3)
    local text, newest
    if kind == 'i:' then text, newest = former_intent(value) elseif kind == 'c:' then text, newest = former_current(value) end
    if kind == 'i:' or kind == 'c:' then redis.call('HDEL', key, name) end
    if kind == 'u:' then redis.call('HSET', key, name, former_write_id(value)) end
    if text and newest <= seq then redis.call('HSET', key, string.sub(kind, 1, 1) .. former_write_id(id), text) end
  end
  return redis.call('HGETALL', key)
end

-- What a finished write committed; nil where there is none, or none that can be read.
local function finished_text(key)
  local text = redis.pcall('GET', key)
  if type(text) == 'table' then return nil, not string.find(text.err, 'WRONGTYPE', 1, true) and text or nil end
  if not text or #text >= 8192 then return nil end
  return current_of(text) and text or former_current(text)
end

-- What stands in the hash, as schema 2 spells it.
local function fields_of(key)
  local flat = redis.pcall('HGETALL', key)
  if flat.err then
    if not string.find(flat.err, 'WRONGTYPE', 1, true) then return nil, flat end
    redis.call('DEL', key)
    return {}
  end
  local schema = FORMER_SCHEMA
  for n = 1, #flat, 2 do
    if flat[n] == 'v' then schema = flat[n + 1] end
  end
  if schema == SCHEMA or #flat == 0 then return flat end
  if schema == FORMER_SCHEMA then return spelled_anew(key, flat) end
  return nil, redis.error_reply('S3TASKSSCHEMA ' .. string.sub(string.gsub(schema, '[^%w.]', '?'), 1, 20))
end

-- The newest number that a field of the record shows.
local function shown_seq(record)
  local seq = 0
  for _, intent in pairs(record.intents) do seq = math.max(seq, intent.tickets[#intent.tickets]) end
  for _, current in pairs(record.currents) do seq = math.max(seq, current.committed) end
  return seq
end

local READ = {i = intent_of, c = current_of}
local PLACE = {i = 'intents', c = 'currents'}

local function load_record(key)
  local flat, problem = fields_of(key)
  if not flat then return nil, problem end
  local record = {key = key, intents = {}, currents = {}}
  for n = 1, #flat, 2 do
    local name, value = flat[n], flat[n + 1]
    local kind, id = string.sub(name, 1, 1), string.sub(name, 2)
    if name == 'seq' then
      record.spelled_seq = former_number(value) or 0
    elseif READ[kind] then
      local entry = is_write_id(id) and READ[kind](value)
      if entry then record[PLACE[kind]][id] = entry else redis.call('HDEL', key, name) end
    end
  end
  record.seq = math.max(record.spelled_seq or 0, shown_seq(record))
  return record
end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function whole(number)
  return string.format('%.0f', number)
end

-- A number above all that were handed out, also by a Redis that has since lost its last writes in a failover.
local function next_seq(record)
  record.seq = math.max(record.seq + 1, now())
  return record.seq
end

local function save(record, retention_seconds)
  if shown_seq(record) < record.seq then
    redis.call('HSET', record.key, 'v', SCHEMA, 'seq', whole(record.seq))
  else
    redis.call('HSET', record.key, 'v', SCHEMA)
    if record.spelled_seq then redis.call('HDEL', record.key, 'seq') end
  end
  redis.call('EXPIRE', record.key, retention_seconds)
end

local function last(intent)
  return intent.tickets[#intent.tickets]
end

-- Keeps the intent open for these attempts; for none, closes it.
local function keep_attempts(record, id, tickets)
  local intent = record.intents[id]
  if #tickets == 0 then
    record.intents[id] = nil
    redis.call('HDEL', record.key, 'i' .. id)
    return
  end
  intent.tickets = tickets
  local text = intent.does
  for _, ticket in ipairs(tickets) do text = text .. spelled_number(ticket) end
  redis.call('HSET', record.key, 'i' .. id, text)
end

-- This attempt is over; others of the same write, which may be slow rather than dead, go on. False where it was not open.
local function end_attempt(record, id, ticket)
  local intent, kept = record.intents[id], {}
  if not intent then return false end
  for _, open in ipairs(intent.tickets) do
    if open ~= ticket then table.insert(kept, open) end
  end
  local was_open = #kept < #intent.tickets
  keep_attempts(record, id, kept)
  return was_open
end

-- The write is done by its attempt `ticket`: what may still land of older ones keeps nobody waiting. A newer one is under way.
local function finish(record, id, ticket)
  local intent = record.intents[id]
  if not intent or intent.does == 'd' or last(intent) > ticket then return end
  intent.does = 'f'
  keep_attempts(record, id, intent.tickets)
end

-- Whether some current write began after the ticket, which is to say: replaced what the ticket's attempt wrote.
local function replaced(record, ticket)
  for _, current in pairs(record.currents) do
    if current.begun > ticket then return true end
  end
  return false
end

-- Puts a write among the current ones and returns its text, for the memory of finished writes. Where a later attempt of the same
-- write is there already, that one's bytes are the newer ones.
local function insert(record, id, begun, rest)
  local known = record.currents[id]
  if known and known.begun > begun then begun, rest = known.begun, known.rest end
  local text = spelled_number(begun) .. spelled_number(next_seq(record)) .. rest
  record.currents[id] = current_of(text)
  redis.call('HSET', record.key, 'c' .. id, text)
  return text
end

local function drop_current(record, id)
  record.currents[id] = nil
  redis.call('HDEL', record.key, 'c' .. id)
end

local function date_of(rest)
  return (struct.unpack('>I4', rest))
end

-- Drops the current writes that had committed when the ticket was handed out: that attempt replaced them. So it did what somebody
-- else had written, if S3's dates say so, though that may have been adopted while the attempt was under way.
-- A ticket from beyond the record's own count comes from a history that Redis has lost, and proves nothing about this one.
local function drop_replaced_by(record, ticket, date)
  local theirs = record.currents[SOMEBODY]
  if theirs and theirs.date > 0 and theirs.date + CLOCK_DOUBT_SECONDS < date then drop_current(record, SOMEBODY) end
  if ticket > record.seq then return end
  for id, current in pairs(record.currents) do
    if current.committed < ticket then drop_current(record, id) end
  end
end
