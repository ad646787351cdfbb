-- forget: an operator removes what is known about an object, intents included. Finished writes stay remembered.
-- KEYS[1] the record
-- Returns 1 where there was a record, else 0
return redis.call('DEL', KEYS[1])
