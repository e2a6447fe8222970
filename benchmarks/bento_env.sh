#!/bin/sh
# Builds the bento, installs what it asks for (and nothing else) into a new environment, and asks it for a risk there.
#   benchmarks/bento_env.sh BUNDLE SNAPSHOT
# The tests do the same with training libraries blocked from import, which is quicker but no proof of installation.
set -eu
[ $# -eq 2 ] || { echo "usage: $0 BUNDLE SNAPSHOT" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
bundle=$(cd "$1" && pwd)
snapshot=$(cd "$2" && pwd)
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
export BENTOML_HOME="$work/home" BENTOML_DO_NOT_TRACK=true

# `bentoml build` downloads uv where there is none, although nothing is locked here.
mkdir -p "$work/bin"
printf '#!/bin/sh\nexit 1\n' > "$work/bin/uv"
chmod +x "$work/bin/uv"
tag=$(PATH="$work/bin:$PATH" "$root/.venv/bin/python" -m bentoml build "$root" --output tag | sed -n 's/^__tag__://p')
bento="$BENTOML_HOME/bentos/$(echo "$tag" | tr : /)"
echo "built $tag"

"$root/.venv/bin/python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check \
    -r "$bento/env/python/requirements.txt" -c "$bento/src/constraints.txt"
for module in mlflow shap sklearn lightgbm scipy training; do
    if (cd "$work" && "$work/venv/bin/python" -c "import $module" 2>/dev/null); then
        echo "$module is installed, and should not be" >&2
        exit 1
    fi
done
echo "installed $(du -sm "$work/venv" | cut -f1) MB, without training libraries"

port=$("$work/venv/bin/python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
cd "$work"
DOORSTEP_BUNDLE="$bundle" DOORSTEP_SNAPSHOT="$snapshot" \
    "$work/venv/bin/python" -m bentoml serve "$bento" --host 127.0.0.1 --port "$port" > "$work/log" 2>&1 &
server=$!
"$work/venv/bin/python" - "$port" <<'PYTHON' || { tail -20 "$work/log" >&2; exit 1; }
import json, sys, time, urllib.request

url = f"http://127.0.0.1:{sys.argv[1]}"
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for _ in range(300):
    try:
        opener.open(f"{url}/readyz").close()
        break
    except OSError:
        time.sleep(0.2)
with opener.open(f"{url}/docs.json") as f:
    example = json.load(f)["paths"]["/v1/risk"]["post"]["requestBody"]["content"]["application/json"]["example"]
request = urllib.request.Request(f"{url}/v1/risk", json.dumps(example).encode(), {"Content-Type": "application/json"})
with opener.open(request) as f:
    answer = json.load(f)
assert not answer["degraded"], answer["warnings"]
print(f"answered by bundle {answer['bundle']}:", {k: round(v["probability"], 4) for k, v in answer["risks"].items()})
PYTHON
