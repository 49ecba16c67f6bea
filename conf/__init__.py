"""The yaml tree that composes a run; `conf/<group>/<name>.yaml` is a constructor call."""
