"""What only runs on a developer's machine: the local stack, its emulators, a Supabase and the Edge function."""
