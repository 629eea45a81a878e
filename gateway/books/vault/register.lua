-- Whether a tag may be made, or opened by the mark it was made with; a mark of '' only asks. See redis.py.
--
-- KEYS: the vault (name, again: ms), its registry (of each tag "mark quiet", or "lost").
-- ARGV: tag, mark, known (1: the gateway has had rights under it), lease_ms.
-- Returns {'empty'}, {'lost'}, or {'open', how long it is quiet (ms)}: the tag's server may have another clock.

local tag, mark, known, lease_ms = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4])
local begun = redis.call('HMGET', KEYS[1], 'name', 'again')
if not begun[1] then
    return {'empty'}
end
local again = tonumber(begun[2] or '0')
local entry = redis.call('HGET', KEYS[2], tag)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if entry and entry ~= 'lost' then
    local its_mark, quiet = string.match(entry, '^(%S+) (%d+)$')
    if its_mark ~= mark then
        return {'lost'}
    end
    return {'open', math.max(0, tonumber(quiet) - now)}
end
if not entry and known and again == 0 then
    return {'lost'}
end

local quiet = 0
if entry or known then
    quiet = now + lease_ms
elseif again > 0 then
    quiet = again + lease_ms
end
if mark ~= '' then
    redis.call('HSET', KEYS[2], tag, mark .. ' ' .. string.format('%.0f', quiet))
end
return {'open', math.max(0, quiet - now)}
