#!/bin/sh
# podman for podman-compose. No systemd runs the health checks of containers here: who waits for one to be healthy runs its
# check (podman itself waits for health from 4.6 on, and podman-compose goes by that). The one image that all services of
# ours have was built before. podman would start what a container requires with it, also what has ended well: compose waits
# instead.
case "$*" in
  --version*) echo podman version 4.6.0 ;;
  "build "*) exec podman image exists malaria/orchestration ;;
  "wait --condition=healthy "*)
    shift 2
    for container; do
      until podman healthcheck run "$container" >/dev/null 2>&1; do sleep 1; done
    done ;;
  "create "*)
    for word; do
      shift
      case "$word" in --requires=*) ;; *) set -- "$@" "$word" ;; esac
    done
    exec podman "$@" ;;
  *) exec podman "$@" ;;
esac
