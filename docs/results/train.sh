# What the arms.sh of the pages share; they run from the root of the project.

train() {  # option file, name [key=value ...]: a training, unless it is there already; by `script`, if that is set
  local file=$1 name=$2
  shift 2
  [ -e "experiments/$name/models/net_g_latest.pth" ] && return
  python "${script:-train.py}" -opt "$file" --force_yml "name=$name" "$@"
}

arm() {  # arm, seed [key=value ...]: a training by the file `student`, named with `prefix`, if that is set
  local name=${prefix:-}$1_s$2 seed=$2
  shift 2
  train "$student" "$name" "manual_seed=$seed" "$@"
}
