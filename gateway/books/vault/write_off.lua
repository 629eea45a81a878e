-- Charge all that a gateway has in some accounts, and fence it. May be done again, for other accounts or the same.
--
-- KEYS: the tag, then accounts. ARGV: name. Returns in how many accounts it had something; -1 where it is not known.

local field = '@' .. ARGV[1]
local said = redis.call('HGET', KEYS[1], field)
if not said then
    return -1
end
redis.call('HSET', KEYS[1], field, 'fenced 0 ' .. string.match(said, '^%S+ %S+ (%S+)') .. ' ')
local charged = 0
for at = 2, #KEYS do
    local share = redis.call('HGET', KEYS[at], field)
    if share then
        local rights, spent = string.match(share, '^(%d+) (%d+) ')
        local most = tonumber(rights) > tonumber(spent) and rights or spent
        redis.call('HINCRBY', KEYS[at], 'off', most)
        redis.call('HDEL', KEYS[at], field)
        charged = charged + 1
    end
end
return charged
