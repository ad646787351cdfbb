-- adopt: somebody else's write, proven newer, becomes the only current one, if the record is still the one that was judged.
-- KEYS[1] the record
-- ARGV[1] the seq of the record that was judged   [2] rest   [3] retention, seconds
-- Returns the text of the current write, or '' where the record has changed
local record, problem = load_record(KEYS[1])
if not record then return problem end
if whole(record.seq) ~= ARGV[1] then return '' end

for id in pairs(record.currents) do drop_current(record, id) end
local begun = next_seq(record)
local text = insert(record, SOMEBODY, begun, ARGV[2])
save(record, ARGV[3])
return text
