#!/bin/sh
# Tells the forge which refs a push has changed, and its push options, through the file
# $FORGE_PUSH_REPORT. Lines are "<old> <new> <ref>" and "option <text>". What $FORGE_PUSH_MESSAGE
# says, git shows to the person who pushes.
{
    cat
    number=0
    while [ "$number" -lt "${GIT_PUSH_OPTION_COUNT:-0}" ]; do
        eval "printf 'option %s\\n' \"\$GIT_PUSH_OPTION_$number\""
        number=$((number + 1))
    done
} >"$FORGE_PUSH_REPORT"
if [ -n "$FORGE_PUSH_MESSAGE" ]; then
    printf '\n%s\n' "$FORGE_PUSH_MESSAGE"
fi
