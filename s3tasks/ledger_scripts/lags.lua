-- lags: how long writes took to become visible, and what time it is here: asked by a reader that must wait, and by nobody else.
-- KEYS[1] the histogram of an endpoint's bucket
-- Returns {microseconds of Redis's clock, text}; the text is '' where there is none: see seen.lua
local text = redis.pcall('GET', KEYS[1])
if type(text) == 'table' then
  if not string.find(text.err, 'WRONGTYPE', 1, true) then return text end
  text = ''
end
return {whole(now()), text and #text < 16384 and text or ''}
