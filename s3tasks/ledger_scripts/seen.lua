-- seen: a reader that has waited for a write has found it visible. Its lag goes into the histogram, and older ones fade.
-- KEYS[1] the histogram of an endpoint's bucket
-- ARGV[1] committed: the write's number, which is when it was recorded, in microseconds of this clock
--     [2] microseconds since the probe that found it began   [3] its age in microseconds when it was last found not visible
--     [4] retention, seconds
-- A string: "1;<bin>:<weight>,<bin>:<weight>,…;<committed>,<committed>,…". Bin k holds lags up to 1 ms * 2^(k/12); behind them are
-- the writes seen last, for of many readers of one write the first knows best. A lag is only known to lie between two probes: half of
-- it is shared evenly between the bins there (of the last three octaves), half as the lags seen before are. What cannot be read is
-- put right.
-- Returns the age at the probe in microseconds, or -1 where this write's lag is known already, or makes no sense by this clock
local LAST_BIN, FADING, LEAST_WEIGHT, KEPT = 319, 0.95, 0.002, 16
local function is_number(text)
  return string.match(text, '^%d+$') and #text <= 16
end

local committed = is_number(ARGV[1]) and tonumber(ARGV[1])
if not committed then return -1 end
local age = now() - tonumber(ARGV[2]) - committed
if age <= 0 then return -1 end

local function bin_of(microseconds)
  local bin = math.ceil(12 * math.log(math.max(microseconds, 1) / 1000) / math.log(2) - 0.000001)
  return math.max(0, math.min(LAST_BIN, bin))
end

local text = redis.pcall('GET', KEYS[1])
if type(text) == 'table' then
  if not string.find(text.err, 'WRONGTYPE', 1, true) then return text end
  text = nil
end
local bins, seen
if text and #text < 16384 then bins, seen = string.match(text, '^1;([%d.:,]*);([%d,]*)$') end

local weights, known = {}, {ARGV[1]}
for bin, weight in string.gmatch(bins or '', '(%d+):(%d+%.%d+)') do
  bin, weight = tonumber(bin), tonumber(weight)
  if bin <= LAST_BIN then weights[bin] = weight end
end
for other in string.gmatch(seen or '', '%d+') do
  if other == ARGV[1] then return -1 end
  if #known < KEPT and is_number(other) then table.insert(known, other) end
end

local total = 0
for _, weight in pairs(weights) do total = total + weight end
if total > 1 / (1 - FADING) + 1 then weights = {} end

local last = bin_of(age)
local first = math.min(last, math.max(bin_of(tonumber(ARGV[3])) + 1, bin_of(age / 8)))
local before = 0
for bin = first, last do before = before + (weights[bin] or 0) end
local share, entries = {}, {}
for bin = first, last do
  local even = 1 / (last - first + 1)
  share[bin] = before > 0 and (even + (weights[bin] or 0) / before) / 2 or even
end
for bin = 0, LAST_BIN do
  local weight = (weights[bin] or 0) * FADING + (share[bin] or 0)
  if weight > LEAST_WEIGHT then table.insert(entries, string.format('%d:%.4f', bin, weight)) end
end
redis.call('SET', KEYS[1], '1;' .. table.concat(entries, ',') .. ';' .. table.concat(known, ','), 'EX', ARGV[4])
return age
