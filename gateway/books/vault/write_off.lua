-- Charge all that a gateway has in some accounts, and fence it. May be done again, for other accounts or the same.
--
-- KEYS: the tag, then accounts. ARGV: name; unheard_ms: for how long at least it has not been heard of.
-- Returns in how many accounts it had something; -1 where it is not known, or was heard of since.

local field = '@' .. ARGV[1]
local said = redis.call('HGET', KEYS[1], field)
if not said then
    return -1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch, heard = string.match(said, '^(%S+) %S+ (%d+) ')
if epoch ~= 'fenced' and now - heard < tonumber(ARGV[2]) then
    return -1
end
if epoch ~= 'fenced' then -- it is remembered from now on, for fenced_ms of `exchange.lua`
    redis.call('HSET', KEYS[1], field, 'fenced 0 ' .. string.format('%.0f', now) .. ' ')
end
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
