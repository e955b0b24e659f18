-- wrk's script: posts every body of a folder in turn, and prints one line of JSON at the end.
-- Arguments: the folder, then headers as "Name: value".
local requests, next_index = {}, 0

function init(args)
  local folder, headers = args[1], {}
  for index = 2, #args do
    local name, value = args[index]:match("^(.-): (.*)$")
    headers[name] = value
  end
  local listing = io.open(folder .. "/list")
  for name in listing:lines() do
    local file = io.open(folder .. "/" .. name, "rb")
    local body = file:read("*a")
    file:close()
    requests[#requests + 1] = wrk.format("POST", nil, headers, body)
  end
  listing:close()
end

function request()
  next_index = next_index % #requests + 1
  return requests[next_index]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
