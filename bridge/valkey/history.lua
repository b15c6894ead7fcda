-- Appends events of one partition to the lists of their ceremonies, with the place that the store then has, or nothing
-- where the store has another place.
-- KEYS: places. ARGV: partition, expected place, new place, offset before which the log had lost events (0: none),
--   1 in a rebuild, events kept of a ceremony, seconds that a list without a row is kept; then of each ceremony: id,
--   number of events, JSON of each event.
local HISTORY, ROW, STARTED = 'ceremony:history:', 'ceremony:instance:', 'ceremony.started'
-- Newest events among which one is searched that is written again by another fold number, or has an id without order.
local LOOK = 100
local place = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if place ~= ARGV[2] then return place end
local since, rebuilds, kept, seconds = tonumber(ARGV[4]), ARGV[5] == '1', tonumber(ARGV[6]), ARGV[7]

-- Offset, id, time and subject of an event, from the beginning of its JSON.
local function head(text)
    local offset, id, at, subject =
        string.match(text, '"offset":(%d+),"idempotency_key":"(.-)","timestamp":"(.-)","event_type":"(.-)"')
    return tonumber(offset), id, at, subject
end

-- Number that a stored event has in its history, and its beginning up to the fields of the event itself.
local function mark(text)
    local beginning, number = string.match(text, '^({"number":(%d+),.-)"offset":')
    return tonumber(number) or 0, beginning
end

-- Fold number of an id, and its order within that; nothing for an id of another form.
local function order(id)
    local version, ordinal, fold = string.match(id, '/(%d+)/(%d+)@(%d+)$')
    if fold then return fold, tonumber(version) * 1e6 + tonumber(ordinal) end
end

local List = {}
List.__index = List

local function open(key)
    local list = setmetatable({ key = key, places = {}, highest = {}, number = 0, looked = false }, List)
    list:read(rebuilds and 0 or -1)
    return list
end

-- Learn the events from this index of the list on, with their own index where all are read.
function List:read(from)
    for position, text in ipairs(redis.call('LRANGE', self.key, from, -1)) do
        local _, id = head(text)
        if id then self:learn(id, from == 0 and position - 1 or true) end
        self.last = text
    end
    if self.last then
        local offset, _, moment = head(self.last)
        self.number = mark(self.last)
        self.offset, self.at = offset, moment
    end
end

function List:learn(id, index)
    local fold, rank = order(id)
    self.places[id] = index
    if fold then self.highest[fold] = math.max(rank, self.highest[fold] or 0) end
end

function List:forget()
    redis.call('DEL', self.key)
    self.places, self.highest, self.number, self.looked = {}, {}, 0, true
    self.last, self.offset, self.at = nil, nil, nil
end

-- Whether the list has an event, or had it before it was trimmed: a crash, or a replay of the log, wrote it again.
function List:has(id)
    local fold, rank = order(id)
    if not rebuilds and not self.looked and not (fold and self.highest[fold]) then
        self.looked = true
        self:read(-LOOK)
    end
    return self.places[id] or (fold and self.highest[fold] and rank <= self.highest[fold])
end

function List:append(text, offset, id, at)
    local lost = self.offset and self.offset < since and '"lost_before":true,' or ''
    self.number = self.number + 1
    redis.call('RPUSH', self.key, '{"number":' .. self.number .. ',' .. lost .. string.sub(text, 2))
    self:learn(id, true)
    self.offset, self.at = offset, at
end

-- Write an event again, redacted by the rules of today.
function List:replace(text, id)
    local index = self.places[id]
    if type(index) ~= 'number' then return end
    local _, beginning = mark(redis.call('LINDEX', self.key, index) or '')
    if beginning then redis.call('LSET', self.key, index, beginning .. string.sub(text, 2)) end
end

local at = 8
while ARGV[at] do
    local list = open(HISTORY .. ARGV[at])
    for index = at + 2, at + 1 + tonumber(ARGV[at + 1]) do
        local text = ARGV[index]
        local offset, id, moment, subject = head(text)
        if subject == STARTED and list.at and moment > list.at then list:forget() end
        if not list:has(id) then
            list:append(text, offset, id, moment)
        elseif rebuilds then
            list:replace(text, id)
        end
    end
    redis.call('LTRIM', list.key, -kept, -1)
    if redis.call('EXISTS', ROW .. ARGV[at]) == 0 then redis.call('EXPIRE', list.key, seconds) end
    at = at + 2 + tonumber(ARGV[at + 1])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return ARGV[3]
