-- The record of one object, as every move reads and writes it: this text is put before each of the moves.
--
-- A hash:  v             schema version, '1'
--          seq           the newest number handed out: microseconds of Redis's own clock, never twice, never backwards
--          i:<write id>  an open intent: "<w|d|f> <ticket> <ticket> …", the attempts that may still land, oldest first;
--                        of a write, of a delete, or of a write that another of its attempts has finished
--          c:<write id>  a current write: "<begun> <committed> <date> <etag> <version id> <size>"
-- The last four of a current write ("rest") are opaque here but for the date. A field that cannot be read is dropped, and so is one
-- with a number that the record has not counted yet: no move has put it there, and no later write could ever replace it.

local SCHEMA = '1'

-- Beyond it a double has no whole numbers left, and counting on would stand still.
local LARGEST_NUMBER = 9000000000000000

local CURRENT = '^(%d+) (%d+) (%d+) %S+ %S+ [%d*]+$'

local function number(text)
  if not string.match(text, '^%d+$') or #text > 16 then return nil end
  local value = tonumber(text)
  return value <= LARGEST_NUMBER and value or nil
end

-- All of these as numbers; nil where one is none.
local function numbers(...)
  local read = {}
  for n = 1, select('#', ...) do
    read[n] = number((select(n, ...)) or '')
    if not read[n] then return nil end
  end
  return unpack(read)
end

-- What a finished write committed; nil where there is none, or none that can be read.
local function finished_text(key)
  local text = redis.pcall('GET', key)
  if type(text) == 'table' then
    if not string.find(text.err, 'WRONGTYPE', 1, true) then return nil, text end
    redis.call('DEL', key)
    return nil
  end
  return text and #text < 8192 and numbers(string.match(text, CURRENT)) and text or nil
end

local function drop_uncounted(record)
  for id, intent in pairs(record.intents) do
    if intent.tickets[#intent.tickets] > record.seq then redis.call('HDEL', record.key, 'i:' .. id); record.intents[id] = nil end
  end
  for id, current in pairs(record.currents) do
    if current.committed > record.seq then redis.call('HDEL', record.key, 'c:' .. id); record.currents[id] = nil end
  end
end

local function load_record(key)
  local flat = redis.pcall('HGETALL', key)
  if flat.err then
    if not string.find(flat.err, 'WRONGTYPE', 1, true) then return nil, flat end
    redis.call('DEL', key)
    flat = {}
  end
  local record = {key = key, seq = 0, intents = {}, currents = {}}
  for n = 1, #flat, 2 do
    local name, value = flat[n], flat[n + 1]
    local kind, id = string.sub(name, 1, 2), string.sub(name, 3)
    if name == 'v' and value ~= SCHEMA then
      return nil, redis.error_reply('S3TASKSSCHEMA the record has schema ' .. value .. ', this is s3tasks for schema ' .. SCHEMA)
    elseif name == 'seq' then
      record.seq = number(value) or 0
    elseif kind == 'i:' then
      local does, rest = string.match(value, '^([wdf])([ %d]*)$')
      local intent = {does = does, tickets = {}}
      local readable = does ~= nil
      for ticket in string.gmatch(rest or '', '%d+') do
        if number(ticket) then table.insert(intent.tickets, number(ticket)) else readable = false end
      end
      if readable and #intent.tickets > 0 then record.intents[id] = intent else redis.call('HDEL', key, name) end
    elseif kind == 'c:' then
      local begun, committed, date = numbers(string.match(value, CURRENT))
      if begun then
        record.currents[id] = {begun = begun, committed = committed, rest = string.match(value, '^%d+ %d+ (.*)$'), date = date}
      else redis.call('HDEL', key, name) end
    end
  end
  drop_uncounted(record)
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
  redis.call('HSET', record.key, 'v', SCHEMA, 'seq', whole(record.seq))
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
    redis.call('HDEL', record.key, 'i:' .. id)
    return
  end
  intent.tickets = tickets
  local words = {intent.does}
  for _, ticket in ipairs(tickets) do table.insert(words, whole(ticket)) end
  redis.call('HSET', record.key, 'i:' .. id, table.concat(words, ' '))
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
  local text = whole(begun) .. ' ' .. whole(next_seq(record)) .. ' ' .. rest
  redis.call('HSET', record.key, 'c:' .. id, text)
  return text
end

-- Drops the current writes that had committed when the ticket was handed out: that attempt replaced them.
-- A ticket from beyond the record's own count comes from a history that Redis has lost, and proves nothing about this one.
local function drop_replaced_by(record, ticket)
  if ticket > record.seq then return end
  for id, current in pairs(record.currents) do
    if current.committed < ticket then redis.call('HDEL', record.key, 'c:' .. id) end
  end
end
