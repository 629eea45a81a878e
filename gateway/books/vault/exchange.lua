-- One exchange of a gateway: what it says of its accounts under a tag is taken in, and it is given rights. Atomic.
-- The arithmetic is that of `account.py`; tests/contracts plays the same exchanges on both.
--
-- Numbers are doubles: amounts are whole and below 2^53, and so exact; `tostring` keeps 14 digits only, so they are
-- written with string.format. Epochs and numbers of exchanges may be longer; they come as 20 digits, compared as text.
--
-- KEYS: the tag (mark, open, run, quiet, and @name of each gateway: "epoch number heard start", where epoch may be
--   "fenced"), the index of its accounts (a sorted set by expiry), then an account for each claim (limit, as_of, off,
--   wanter, wanted, and @name of each gateway: "rights spent corrected").
-- ARGV: name, epoch, number, lease_ms, wanted_ms, gateways_max; mark to make the tag with, or ''; mark to open it by,
--   or ''; how long it is quiet then (ms); start; fenced_ms; then for each claim: member of the index, limit, as_of,
--   rights, spent, want, need, lasts_s (0: for good), corrected (-1: not counted).
-- Returns {'absent'}, {'shut', mark}, {'stale'}, {'fenced'}, {'forgetful'}, {'crowded'}, {'evicts', policy}, or
--   {'given', quiet} and rights, free, others, wanted for each claim.

local name, epoch, number, start = ARGV[1], ARGV[2], ARGV[3], ARGV[10]
local lease_ms, wanted_ms, gateways_max = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local fenced_ms, mine = tonumber(ARGV[11]), '@' .. name
local CLAIMS, FIELDS = 12, 9 -- the first argument of claims, and how many each has
local FENCED = 102 -- what "fenced" begins with, and no epoch
local byte, match = string.byte, string.match
local make, open_by, open_quiet = ARGV[7], ARGV[8], tonumber(ARGV[9])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local run = match(redis.call('INFO', 'server'), 'run_id:(%x+)')

local function whole(amount)
    return string.format('%.0f', amount)
end

-- The tag: is it there, is it open, who speaks?

local mark, open, kept_by, quiet, known = unpack(redis.call('HMGET', KEYS[1], 'mark', 'open', 'run', 'quiet', mine))
if not mark then
    if make == '' then
        return {'absent'}
    end
    redis.call('HSET', KEYS[1], 'mark', make)
    return {'shut', make}
end
local opens = not open
if opens and open_by ~= mark then
    return {'shut', mark}
end

local living, gateways, alive, gone = {}, 0, 1, {}
if known then
    local its_epoch, its_number, heard, its_start = match(known, '^(%S+) (%S+) (%S+) (%S*)$')
    if its_epoch == 'fenced' and now - tonumber(heard) > fenced_ms then
        known = false
    elseif its_epoch == 'fenced' or epoch < its_epoch or (epoch == its_epoch and start ~= its_start) then
        return {'fenced'}
    elseif epoch == its_epoch and number <= its_number then
        return {'stale'}
    end
end
-- There may be a thousand of them: they are looked at as they come, and told from other fields by what they say.
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do
    local said = fields[at + 1]
    local heard = match(said, '^%S+ %S+ (%d+) ')
    if heard and fields[at] ~= mine then
        local ago = now - heard
        if byte(said) ~= FENCED then
            gateways = gateways + 1
            if ago <= lease_ms then
                living[fields[at]] = true
                alive = alive + 1
            end
        elseif ago > fenced_ms then
            gone[#gone + 1] = fields[at]
        end
    end
end
if not known and gateways >= gateways_max then
    return {'crowded'}
end

-- The accounts: does it know what it has spent of them?

for at = 3, #KEYS do
    local first = CLAIMS + (at - 3) * FIELDS
    local spent, corrected = tonumber(ARGV[first + 4]), tonumber(ARGV[first + 8])
    local share = redis.call('HGET', KEYS[at], mine)
    if share then
        local _, its_spent, its_corrected = match(share, '^(%d+) (%d+) (%d+)$')
        if spent < tonumber(its_spent) and corrected >= 0 and corrected <= tonumber(its_corrected) then
            return {'forgetful'}
        end
    end
end

quiet = tonumber(quiet or '0')
if opens then
    quiet = now + open_quiet
elseif run ~= kept_by then
    quiet = math.max(quiet, now + lease_ms)
end
if run ~= kept_by then
    local memory = redis.call('INFO', 'memory')
    local policy = match(memory, 'maxmemory_policy:([%w-]+)')
    if policy and policy ~= 'noeviction' and match(memory, 'maxmemory:(%d+)') ~= '0' then
        return {'evicts', policy}
    end
end

redis.call('HSET', KEYS[1], 'open', '1', 'run', run, 'quiet', whole(quiet),
    mine, epoch .. ' ' .. number .. ' ' .. whole(now) .. ' ' .. start)
for _, field in ipairs(gone) do
    redis.call('HDEL', KEYS[1], field)
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', whole(now))

-- Each account in turn.

local answer = {'given', now < quiet and 1 or 0}
for at = 3, #KEYS do
    local key, first = KEYS[at], CLAIMS + (at - 3) * FIELDS
    local member, limit, as_of = ARGV[first], tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
    local rights, spent = tonumber(ARGV[first + 3]), tonumber(ARGV[first + 4])
    local want, need, lasts_s = tonumber(ARGV[first + 5]), tonumber(ARGV[first + 6]), tonumber(ARGV[first + 7])
    local corrected = math.max(0, tonumber(ARGV[first + 8]))

    local its_limit, its_as_of, off, wanter, wanted_at =
        unpack(redis.call('HMGET', key, 'limit', 'as_of', 'off', 'wanter', 'wanted'))
    if its_limit and as_of < tonumber(its_as_of) then
        limit = tonumber(its_limit)
    else
        redis.call('HSET', key, 'limit', whole(limit), 'as_of', ARGV[first + 2])
    end

    local free, others = limit - tonumber(off or '0') - math.max(rights, spent), 0
    local shares = redis.call('HGETALL', key)
    for one = 1, #shares, 2 do
        local has, used = match(shares[one + 1], '^(%d+) (%d+) ')
        if has and shares[one] ~= mine then
            local left = has - used
            free = free - (left > 0 and has or used)
            if left > 0 and living[shares[one]] then
                others = others + left
            end
        end
    end

    local wanted = wanter and wanter ~= name and now - wanted_at <= wanted_ms
    local more = 0
    if now >= quiet then
        if need <= free then
            local part = (free - math.fmod(free, 2 * alive)) / (2 * alive) -- rounded down, exactly
            more = math.max(need, math.min(wanted and 0 or want, part))
        end
        if more < need then
            redis.call('HSET', key, 'wanter', name, 'wanted', whole(now))
        elseif wanter == name then
            redis.call('HDEL', key, 'wanter', 'wanted')
        end
    end

    rights = rights + more
    if rights > 0 or spent > 0 then
        redis.call('HSET', key, mine, whole(rights) .. ' ' .. whole(spent) .. ' ' .. whole(corrected))
    else
        redis.call('HDEL', key, mine)
    end
    local until_s = math.ceil(now / 1000) + lasts_s
    if lasts_s > 0 then
        redis.call('EXPIREAT', key, whole(until_s))
    end
    redis.call('ZADD', KEYS[2], lasts_s > 0 and whole(until_s * 1000) or '+inf', member)

    answer[#answer + 1] = rights
    answer[#answer + 1] = free - more
    answer[#answer + 1] = others
    answer[#answer + 1] = wanted and 1 or 0
end
return answer
