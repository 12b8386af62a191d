id="web-$(od -An -N5 -tx1 /dev/urandom | tr -d ' ')"
me='{"instance_id":"'$id'","service":"web","endpoint":"10.0.0.5:8080","started_at":"'$(date -u +%FT%TZ)'"}'
while kill -0 "$(cat server.pid)"; do nats pub -H Nats-TTL:30 "box.register.web.$id" "$me"; sleep 10; done
nats pub "box.deregister.web.$id" '{"instance_id":"'$id'","service":"web","reason":"it has ended"}'
