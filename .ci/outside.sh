# To be sourced. `outside PYTHON FOLDER [OPTIONS OF PIP]` builds the wheel, installs it with the extra `dev` in the new
# environment FOLDER/venv, and puts everything but the package into FOLDER/tree: what runs there can find the wheel alone.
outside() {
  local python="$1" folder="$2"
  shift 2
  "$python" -m venv "$folder/venv"
  "$folder/venv/bin/pip" install -q build
  "$folder/venv/bin/python" -m build -o "$folder/dist" . >"$folder/build.log" || { cat "$folder/build.log"; return 1; }
  "$folder/venv/bin/pip" install -q "$(echo "$folder"/dist/*.whl)[dev]" "$@"
  mkdir -p "$folder/tree"
  git ls-files --cached --others --exclude-standard | grep -v '^pure_batching/' | xargs -d '\n' cp --parents -t "$folder/tree"
  (cd "$folder/tree" && "$folder/venv/bin/python" -c '
import pathlib, sys, pure_batching
found = pathlib.Path(pure_batching.__file__)
assert found.is_relative_to(sys.prefix), found
print("pure_batching", pure_batching.__version__, "from", found.parent)')
}
