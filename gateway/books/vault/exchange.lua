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
--   or ''; how long it is quiet then (ms); start; then for each claim: member of the index, limit, as_of, rights,
--   spent, want, need, lasts_s (0: for good), corrected (-1: not counted).
-- Returns {'absent'}, {'shut', mark}, {'stale'}, {'fenced'}, {'forgetful'}, {'crowded'}, {'evicts', policy}, or
--   {'given', quiet} and rights, free, others, wanted for each claim.

local name, epoch, number, start = ARGV[1], ARGV[2], ARGV[3], ARGV[10]
local lease_ms, wanted_ms, gateways_max = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local make, open_by, open_quiet = ARGV[7], ARGV[8], tonumber(ARGV[9])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')

local function whole(amount)
    return string.format('%.0f', amount)
end

local function hash(key)
    local flat, found = redis.call('HGETALL', key), {}
    for at = 1, #flat, 2 do
        found[flat[at]] = flat[at + 1]
    end
    return found
end

-- The tag: is it there, is it open, who speaks?

local tag = hash(KEYS[1])
if not tag.mark then
    if make == '' then
        return {'absent'}
    end
    redis.call('HSET', KEYS[1], 'mark', make)
    return {'shut', make}
end
local opens = not tag.open
if opens and open_by ~= tag.mark then
    return {'shut', tag.mark}
end

local living, gateways, known = {}, 0, false
local alive = 1
for field, said in pairs(tag) do
    if string.sub(field, 1, 1) == '@' then
        local its_epoch, its_number, heard, its_start = string.match(said, '^(%S+) (%S+) (%S+) (%S*)$')
        local other = string.sub(field, 2)
        if other == name then
            known = true
            if its_epoch == 'fenced' or epoch < its_epoch or (epoch == its_epoch and start ~= its_start) then
                return {'fenced'}
            end
            if epoch == its_epoch and number <= its_number then
                return {'stale'}
            end
        elseif its_epoch ~= 'fenced' then
            gateways = gateways + 1
            if now - tonumber(heard) <= lease_ms then
                living[other] = true
                alive = alive + 1
            end
        end
    end
end
if not known and gateways >= gateways_max then
    return {'crowded'}
end

-- The accounts: does it know what it has spent of them?

local accounts = {}
for at = 3, #KEYS do
    local account, first = hash(KEYS[at]), 11 + (at - 3) * 9
    local spent, corrected = tonumber(ARGV[first + 4]), tonumber(ARGV[first + 8])
    local share = account['@' .. name]
    if share then
        local _, its_spent, its_corrected = string.match(share, '^(%d+) (%d+) (%d+)$')
        if spent < tonumber(its_spent) and corrected >= 0 and corrected <= tonumber(its_corrected) then
            return {'forgetful'}
        end
    end
    accounts[at] = account
end

local quiet = tonumber(tag.quiet or '0')
if opens then
    quiet = now + open_quiet
elseif run ~= tag.run then
    quiet = math.max(quiet, now + lease_ms)
end
if run ~= tag.run then
    local memory = redis.call('INFO', 'memory')
    local policy = string.match(memory, 'maxmemory_policy:([%w-]+)')
    if policy and policy ~= 'noeviction' and string.match(memory, 'maxmemory:(%d+)') ~= '0' then
        return {'evicts', policy}
    end
end

redis.call('HSET', KEYS[1], 'open', '1', 'run', run, 'quiet', whole(quiet),
    '@' .. name, epoch .. ' ' .. number .. ' ' .. whole(now) .. ' ' .. start)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', whole(now))

-- Each account in turn.

local answer = {'given', now < quiet and 1 or 0}
for at = 3, #KEYS do
    local key, first = KEYS[at], 11 + (at - 3) * 9
    local member, limit, as_of = ARGV[first], tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
    local rights, spent = tonumber(ARGV[first + 3]), tonumber(ARGV[first + 4])
    local want, need, lasts_s = tonumber(ARGV[first + 5]), tonumber(ARGV[first + 6]), tonumber(ARGV[first + 7])
    local corrected = math.max(0, tonumber(ARGV[first + 8]))

    local account = accounts[at]
    if account.limit and as_of < tonumber(account.as_of) then
        limit = tonumber(account.limit)
    else
        redis.call('HSET', key, 'limit', whole(limit), 'as_of', ARGV[first + 2])
    end

    local free, others = limit - tonumber(account.off or '0') - math.max(rights, spent), 0
    for field, share in pairs(account) do
        if string.sub(field, 1, 1) == '@' and field ~= '@' .. name then
            local has, used = string.match(share, '^(%d+) (%d+) ')
            has, used = tonumber(has), tonumber(used)
            free = free - math.max(has, used)
            if living[string.sub(field, 2)] and has > used then
                others = others + has - used
            end
        end
    end

    local wanter = account.wanter or ''
    local wanted = wanter ~= '' and wanter ~= name and now - tonumber(account.wanted) <= wanted_ms
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
        redis.call('HSET', key, '@' .. name, whole(rights) .. ' ' .. whole(spent) .. ' ' .. whole(corrected))
    else
        redis.call('HDEL', key, '@' .. name)
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
