-- Writes rows of one partition and the place that the store then has, or nothing where the store has another place.
-- KEYS: places. ARGV: partition, expected place, new place, number of documents, then
--   id, version, created_at, correlation id, JSON of each document; number of removals, then id, version, created_at of
--   each; then hash, JSON of each definition.
-- The history of a row (history.lua) stays as long as the row does.
local ROW, ALL, BY_CORRELATION = 'ceremony:instance:', 'ceremony:instances:all', 'ceremony:instances:correlation:'
local HISTORY = 'ceremony:history:'
local place = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if place ~= ARGV[2] and place ~= ARGV[3] then return place end

-- Version, creation and correlation id of a row, from its beginning; the last only where it has no escapes.
local function head(key)
    local text = redis.call('GETRANGE', key, 0, 511)
    local version, created, rest = string.match(text, '^{"version":(%d+),"created_at":"([^"]+)","correlation_id":(.*)')
    return text ~= '', tonumber(version), created, rest and string.match(rest, '^"([^"\\]*)"')
end

local function is_newer(version, created, than_version, than_created)
    return version and (created > than_created or (created == than_created and version > than_version))
end

local function correlation_of(key)
    local ok, row = pcall(cjson.decode, redis.call('GET', key))
    return ok and type(row) == 'table' and type(row['correlation_id']) == 'string' and row['correlation_id']
end

local at = 5
for _ = 1, tonumber(ARGV[4]) do
    local id, version, created, correlation = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3]
    local key = ROW .. id
    local exists, old_version, old_created, former = head(key)
    if not is_newer(old_version, old_created, version, created) then
        if exists and former ~= correlation then
            former = former or correlation_of(key)
            if former then redis.call('SREM', BY_CORRELATION .. former, id) end
        end
        if not exists then redis.call('PERSIST', HISTORY .. id) end
        redis.call('SET', key, ARGV[at + 4])
        redis.call('SADD', ALL, id)
        redis.call('SADD', BY_CORRELATION .. correlation, id)
    end
    at = at + 5
end
local removals = tonumber(ARGV[at])
at = at + 1
for _ = 1, removals do
    local id, version, created = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
    local key = ROW .. id
    local exists, old_version, old_created = head(key)
    if not is_newer(old_version, old_created, version, created) then
        local former = correlation_of(key)
        if former then redis.call('SREM', BY_CORRELATION .. former, id) end
        redis.call('DEL', key)
        redis.call('SREM', ALL, id)
        if exists then redis.call('DEL', HISTORY .. id) end
    end
    at = at + 3
end
while ARGV[at] do
    redis.call('SETNX', 'ceremony:definition:' .. ARGV[at], ARGV[at + 1])
    at = at + 2
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return ARGV[3]
