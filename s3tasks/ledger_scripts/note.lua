-- note: a multipart upload of an open write exists. Kept beside the intent, for whoever must clear up after a killed process.
-- KEYS[1] the record
-- ARGV[1] write id   [2] upload id   [3] retention, seconds
-- Returns 1, or 0 where the record is gone: nothing is known of the write then, nor of its uploads
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local record, problem = load_record(KEYS[1])
if not record then return problem end
redis.call('HSET', KEYS[1], 'u:' .. ARGV[2], ARGV[1])
save(record, ARGV[3])
return 1
