"""What tests share: a scripted replica, live processes, pictures."""
