-- For wrk: sends the requests in a file one after another. Arguments: the file, and the offset at which to begin.
-- Each request follows a line with its length.
local requests

function init(arguments)
  requests = assert(io.open(arguments[1], "rb"))
  requests:seek("set", tonumber(arguments[2]))
end

function request()
  local length = requests:read("*l")
  if not length then
    wrk.thread:stop()
    return wrk.format("GET", "/")
  end
  return requests:read(tonumber(length))
end

function done(summary, latency)
  local failed = summary.errors
  print(string.format("RESULT %d %d %d %d status %d, connect %d, read %d, write %d, timeout %d",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    failed.status, failed.connect, failed.read, failed.write, failed.timeout))
end
